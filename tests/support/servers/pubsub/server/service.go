package main

import (
	"context"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// service is pstest with the calls of a subscriber in front.
type service struct {
	*pstest.GServer
	book     *book
	failures *failures
	mu       sync.Mutex
	// Of each subscription, the part that pstest does not see.
	policies map[string]*pb.DeadLetterPolicy
	// Messages published to each topic so far, and how many there were when a subscription was created.
	published, before map[string]int
	// After this time a stream ends, as those of the service do after half an hour. 0: never.
	streamLimit time.Duration
	streams     int
	// Permissions that testIamPermissions does not grant.
	denied map[string]bool
}

func newService(fake *pstest.Server) *service {
	// Ordered delivery goes by this time: no two messages may share it.
	var mu sync.Mutex
	var last time.Time
	fake.SetTimeNowFunc(func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if !now.After(last) {
			now = last.Add(time.Nanosecond)
		}
		last = now
		return now
	})
	return &service{
		GServer:   &fake.GServer,
		book:      newBook(),
		failures:  &failures{codes: map[string]codes.Code{}},
		policies:  map[string]*pb.DeadLetterPolicy{},
		published: map[string]int{},
		before:    map[string]int{},
		denied:    map[string]bool{},
	}
}

func (s *service) CreateSubscription(ctx context.Context, request *pb.Subscription) (*pb.Subscription, error) {
	policy := request.DeadLetterPolicy
	if policy != nil {
		if _, err := s.GetTopic(ctx, &pb.GetTopicRequest{Topic: policy.DeadLetterTopic}); err != nil {
			return nil, err
		}
	}
	inner := proto.Clone(request).(*pb.Subscription)
	inner.DeadLetterPolicy = nil
	if inner.AckDeadlineSeconds == 0 {
		inner.AckDeadlineSeconds = 10
	}
	if inner.AckDeadlineSeconds < 10 {
		return nil, status.Error(codes.InvalidArgument, "Invalid ack deadline given: it must be between 10 and 600 seconds")
	}
	created, err := s.GServer.CreateSubscription(ctx, inner)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.policies[request.Name] = policy
	s.before[request.Name] = s.published[request.Topic]
	s.mu.Unlock()
	return s.whole(created), nil
}

func (s *service) GetSubscription(ctx context.Context, request *pb.GetSubscriptionRequest) (*pb.Subscription, error) {
	found, err := s.GServer.GetSubscription(ctx, request)
	if err != nil {
		return nil, err
	}
	return s.whole(found), nil
}

func (s *service) whole(inner *pb.Subscription) *pb.Subscription {
	whole := proto.Clone(inner).(*pb.Subscription)
	s.mu.Lock()
	whole.DeadLetterPolicy = s.policies[inner.Name]
	s.mu.Unlock()
	return whole
}

// The limits that the service documents and pstest does not have.
func (s *service) Publish(ctx context.Context, request *pb.PublishRequest) (*pb.PublishResponse, error) {
	if len(request.Messages) == 0 || len(request.Messages) > 1000 {
		return nil, status.Error(codes.InvalidArgument, "a publish request has from 1 to 1000 messages")
	}
	if proto.Size(request) > 10<<20 {
		return nil, status.Error(codes.InvalidArgument, "Request payload size exceeds the limit: 10485760 bytes.")
	}
	for _, message := range request.Messages {
		if err := publishable(message); err != nil {
			return nil, err
		}
	}
	return s.store(ctx, request)
}

func (s *service) store(ctx context.Context, request *pb.PublishRequest) (*pb.PublishResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, err := s.GServer.Publish(ctx, request)
	if err == nil {
		s.published[request.Topic] += len(request.Messages)
	}
	return answer, err
}

// depth counts a subscription's messages: neither acked nor dead, and those of them that are leased.
func (s *service) depth(ctx context.Context, subscription string) (waiting, leased int, err error) {
	found, err := s.GetSubscription(ctx, &pb.GetSubscriptionRequest{Subscription: subscription})
	if err != nil {
		return 0, 0, err
	}
	settled, leased := s.book.state(subscription)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.published[found.Topic] - s.before[subscription] - settled, leased, nil
}

func publishable(message *pb.PubsubMessage) error {
	if len(message.Data) == 0 && len(message.Attributes) == 0 {
		return status.Error(codes.InvalidArgument, "Some messages in the request have neither data nor attributes")
	}
	if len(message.OrderingKey) > 1024 || len(message.Attributes) > 100 {
		return status.Error(codes.InvalidArgument, "at most 1024 bytes in an ordering key and 100 attributes")
	}
	for name, value := range message.Attributes {
		if name == "" || len(name) > 256 || len(value) > 1024 || strings.HasPrefix(name, "goog") {
			return status.Errorf(codes.InvalidArgument,
				"attribute %q: 1 to 256 bytes not beginning with goog, a value of at most 1024", name)
		}
	}
	return nil
}

// take gets messages that are due from pstest, and sends those that were tried too often to the dead-letter topic.
func (s *service) take(ctx context.Context, subscription string, most int, bytes int64, to *outlet, deadline time.Duration) ([]*pb.ReceivedMessage, error) {
	pulled, err := s.GServer.Pull(ctx, &pb.PullRequest{Subscription: subscription, MaxMessages: int32(most), ReturnImmediately: true})
	if err != nil || len(pulled.ReceivedMessages) == 0 {
		return nil, err
	}
	messages := make([]*pb.ReceivedMessage, len(pulled.ReceivedMessages))
	for i, one := range pulled.ReceivedMessages {
		// pstest writes the next ack id into its own.
		messages[i] = &pb.ReceivedMessage{AckId: one.AckId, Message: one.Message}
	}
	sort.Slice(messages, func(a, b int) bool {
		return messages[a].Message.PublishTime.AsTime().Before(messages[b].Message.PublishTime.AsTime())
	})
	s.mu.Lock()
	policy := s.policies[subscription]
	s.mu.Unlock()
	var out []*pb.ReceivedMessage
	var back, extended []string
	for _, message := range messages {
		if policy != nil && s.book.attempts(subscription, message.Message) >= int(policy.MaxDeliveryAttempts) {
			if err := s.deadLetter(ctx, subscription, policy, message); err != nil {
				return nil, err
			}
			continue
		}
		if bytes <= 0 {
			back = append(back, message.AckId)
			continue
		}
		bytes -= size(message)
		attempt := s.book.lease(subscription, message, to, time.Now().Add(deadline))
		if policy != nil {
			message.DeliveryAttempt = int32(attempt)
		}
		extended = append(extended, message.AckId)
		out = append(out, message)
	}
	s.modify(ctx, subscription, back, 0)
	s.modify(ctx, subscription, extended, deadline)
	return out, nil
}

func (s *service) deadLetter(ctx context.Context, subscription string, policy *pb.DeadLetterPolicy, message *pb.ReceivedMessage) error {
	letter := proto.Clone(message.Message).(*pb.PubsubMessage)
	if letter.Attributes == nil {
		letter.Attributes = map[string]string{}
	}
	parts := strings.Split(subscription, "/")
	letter.Attributes["CloudPubSubDeadLetterSourceSubscription"] = parts[len(parts)-1]
	letter.Attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] = parts[1]
	letter.Attributes["CloudPubSubDeadLetterSourceDeliveryCount"] =
		strconv.Itoa(s.book.attempts(subscription, message.Message))
	letter.Attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] =
		message.Message.PublishTime.AsTime().Format(time.RFC3339Nano)
	request := &pb.PublishRequest{Topic: policy.DeadLetterTopic, Messages: []*pb.PubsubMessage{letter}}
	if _, err := s.store(ctx, request); err != nil {
		return err
	}
	s.book.died(subscription, message.Message)
	_, err := s.GServer.Acknowledge(ctx, &pb.AcknowledgeRequest{Subscription: subscription, AckIds: []string{message.AckId}})
	return err
}

func (s *service) modify(ctx context.Context, subscription string, acks []string, deadline time.Duration) error {
	if len(acks) == 0 {
		return nil
	}
	_, err := s.GServer.ModifyAckDeadline(ctx, &pb.ModifyAckDeadlineRequest{
		Subscription: subscription, AckIds: acks, AckDeadlineSeconds: int32((deadline + time.Second - 1) / time.Second),
	})
	return err
}

func (s *service) Pull(ctx context.Context, request *pb.PullRequest) (*pb.PullResponse, error) {
	found, err := s.GetSubscription(ctx, &pb.GetSubscriptionRequest{Subscription: request.Subscription})
	if err != nil {
		return nil, err
	}
	deadline := time.Duration(found.AckDeadlineSeconds) * time.Second
	for try := 0; ; try++ {
		messages, err := s.take(ctx, request.Subscription, max(int(request.MaxMessages), 1), 8<<20, nil, deadline)
		if err != nil || len(messages) > 0 || try == 20 {
			return &pb.PullResponse{ReceivedMessages: messages}, err
		}
		time.Sleep(pause)
	}
}

func (s *service) Acknowledge(ctx context.Context, request *pb.AcknowledgeRequest) (*emptypb.Empty, error) {
	found, err := s.GetSubscription(ctx, &pb.GetSubscriptionRequest{Subscription: request.Subscription})
	if err != nil {
		return nil, err
	}
	late := s.book.acked(request.Subscription, request.AckIds, !found.EnableExactlyOnceDelivery)
	kept := without(request.AckIds, late)
	if _, err := s.GServer.Acknowledge(ctx, &pb.AcknowledgeRequest{Subscription: request.Subscription, AckIds: kept}); err != nil {
		return nil, err
	}
	return refused(found, late)
}

func (s *service) ModifyAckDeadline(ctx context.Context, request *pb.ModifyAckDeadlineRequest) (*emptypb.Empty, error) {
	found, err := s.GetSubscription(ctx, &pb.GetSubscriptionRequest{Subscription: request.Subscription})
	if err != nil {
		return nil, err
	}
	if request.AckDeadlineSeconds < 0 || request.AckDeadlineSeconds > 600 {
		return nil, status.Error(codes.InvalidArgument, "Invalid ack deadline given: it must be between 0 and 600 seconds")
	}
	wait := time.Duration(request.AckDeadlineSeconds) * time.Second
	var late []string
	if wait == 0 {
		late = s.book.nacked(request.Subscription, request.AckIds)
		if found.RetryPolicy != nil {
			wait = found.RetryPolicy.MinimumBackoff.AsDuration()
		}
	} else {
		late = s.book.extend(request.Subscription, request.AckIds, time.Now().Add(wait))
	}
	if err := s.modify(ctx, request.Subscription, without(request.AckIds, late), wait); err != nil {
		return nil, err
	}
	return refused(found, late)
}

// refused is the service's answer about leases that have ended: an error only if delivery is exactly once.
func refused(subscription *pb.Subscription, late []string) (*emptypb.Empty, error) {
	if !subscription.EnableExactlyOnceDelivery || len(late) == 0 {
		return &emptypb.Empty{}, nil
	}
	reasons := map[string]string{}
	for _, ack := range late {
		reasons[ack] = "PERMANENT_FAILURE_INVALID_ACK_ID"
	}
	refusal := status.New(codes.FailedPrecondition, "Some acknowledgement ids in the request were invalid.")
	detailed, err := refusal.WithDetails(&errdetails.ErrorInfo{
		Reason: "EXACTLY_ONCE_ACKID_FAILURE", Domain: "pubsub.googleapis.com", Metadata: reasons,
	})
	if err != nil {
		return nil, err
	}
	return nil, detailed.Err()
}

func without(all, some []string) []string {
	gone := map[string]bool{}
	for _, one := range some {
		gone[one] = true
	}
	var kept []string
	for _, one := range all {
		if !gone[one] {
			kept = append(kept, one)
		}
	}
	return kept
}

func messageOf(ack string) string {
	id, _, _ := strings.Cut(ack, ":")
	return id
}
