package main

import (
	"errors"
	"io"
	"sync"
	"time"

	pb "cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Messages in one response at most.
const batch = 200

// Between two looks for messages.
const pause = 5 * time.Millisecond

// outlet is a stream's share of what is lent. Its counts are the book's to change.
type outlet struct {
	maxMessages, maxBytes int64
	messages, bytes       int64
}

// pullStream is one StreamingPull.
type pullStream struct {
	*service
	pb.Subscriber_StreamingPullServer
	subscription *pb.Subscription
	deadline     time.Duration
	heartbeats   bool
	// A stream has one sender at a time.
	sending sync.Mutex
}

func (s *service) StreamingPull(connection pb.Subscriber_StreamingPullServer) error {
	first, err := connection.Recv()
	if err != nil {
		return err
	}
	found, err := s.GetSubscription(connection.Context(), &pb.GetSubscriptionRequest{Subscription: first.Subscription})
	if err != nil {
		return err
	}
	if first.StreamAckDeadlineSeconds < 10 || first.StreamAckDeadlineSeconds > 600 {
		return status.Error(codes.InvalidArgument, "Invalid stream ack deadline given: it must be between 10 and 600 seconds")
	}
	stream := &pullStream{
		service:                        s,
		Subscriber_StreamingPullServer: connection,
		subscription:                   found,
		deadline:                       time.Duration(first.StreamAckDeadlineSeconds) * time.Second,
		heartbeats:                     first.ProtocolVersion >= 1,
	}
	s.count(1)
	defer s.count(-1)
	return stream.run(&outlet{maxMessages: first.MaxOutstandingMessages, maxBytes: first.MaxOutstandingBytes})
}

func (s *service) count(change int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams += change
}

func (p *pullStream) run(to *outlet) error {
	ended := make(chan error, 1)
	go func() { ended <- p.listen() }()
	var limit <-chan time.Time
	p.mu.Lock()
	if p.streamLimit > 0 {
		limit = time.After(p.streamLimit)
	}
	p.mu.Unlock()
	for {
		sent, err := p.deliver(to)
		if err != nil {
			return err
		}
		wait := pause
		if sent {
			wait = 0
		}
		select {
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-limit:
			return status.Error(codes.Unavailable, "The StreamingPull stream closed for an expected reason and should be recreated")
		case <-p.Context().Done():
			return p.Context().Err()
		case <-time.After(wait):
		}
	}
}

func (p *pullStream) deliver(to *outlet) (sent bool, err error) {
	messages, bytes := p.book.room(to)
	if messages <= 0 {
		return false, nil
	}
	// The client's limit for one response.
	out, err := p.take(p.Context(), p.subscription.Name, messages, min(bytes, 4<<20), to, p.deadline)
	if err != nil || len(out) == 0 {
		return false, err
	}
	p.sending.Lock()
	defer p.sending.Unlock()
	return true, p.Send(&pb.StreamingPullResponse{
		ReceivedMessages: out,
		SubscriptionProperties: &pb.StreamingPullResponse_SubscriptionProperties{
			ExactlyOnceDeliveryEnabled: p.subscription.EnableExactlyOnceDelivery,
			MessageOrderingEnabled:     p.subscription.EnableMessageOrdering,
		},
	})
}

func (p *pullStream) listen() error {
	for {
		request, err := p.Recv()
		if err != nil {
			return err
		}
		if len(request.AckIds) > 0 || len(request.ModifyDeadlineAckIds) > 0 {
			return status.Error(codes.Unimplemented, "this server takes acks by their unary calls only")
		}
		if p.heartbeats {
			p.sending.Lock()
			err = p.Send(&pb.StreamingPullResponse{})
			p.sending.Unlock()
			if err != nil {
				return err
			}
		}
	}
}
