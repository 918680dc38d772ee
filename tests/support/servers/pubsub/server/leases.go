package main

import (
	"sync"
	"time"

	pb "cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
)

// book knows who has which message, and what has become of each.
type book struct {
	mu     sync.Mutex
	leases map[leaseID]*lease
	facts  map[messageID]*facts
	order  []messageID
	// Messages of each subscription that were acked or died.
	settled map[string]int
}

type leaseID struct{ subscription, ack string }

type messageID struct{ subscription, id string }

type lease struct {
	message messageID
	outlet  *outlet
	bytes   int64
	expires time.Time
}

// facts are what tests ask about a message of a subscription.
type facts struct {
	Subscription string `json:"subscription"`
	ID           string `json:"id"`
	Data         []byte `json:"data"`
	OrderingKey  string `json:"orderingKey"`
	// How often it was sent to a client.
	Deliveries int `json:"deliveries"`
	Acks       int `json:"acks"`
	// Acks and extensions that came after the lease had ended, whether refused or not.
	Late       int  `json:"late"`
	Nacks      int  `json:"nacks"`
	Extensions int  `json:"extensions"`
	Dead       bool `json:"dead"`
	// Of the last delivery; none after a nack.
	ack string
}

func newBook() *book {
	return &book{leases: map[leaseID]*lease{}, facts: map[messageID]*facts{}, settled: map[string]int{}}
}

// Must be called with the lock held.
func (b *book) of(subscription string, message *pb.PubsubMessage) *facts {
	id := messageID{subscription, message.MessageId}
	known := b.facts[id]
	if known == nil {
		known = &facts{Subscription: subscription, ID: id.id, Data: message.Data, OrderingKey: message.OrderingKey}
		b.facts[id] = known
		b.order = append(b.order, id)
	}
	return known
}

// lease notes that a message goes out. Returns which attempt that is.
func (b *book) lease(subscription string, message *pb.ReceivedMessage, to *outlet, until time.Time) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := b.of(subscription, message.Message)
	known.Deliveries++
	known.ack = message.AckId
	bytes := size(message)
	b.leases[leaseID{subscription, message.AckId}] =
		&lease{messageID{subscription, known.ID}, to, bytes, until}
	if to != nil {
		to.messages++
		to.bytes += bytes
	}
	return known.Deliveries
}

// acked ends leases; returns which of them had ended before. If `lenient`, an ack counts until the next delivery.
func (b *book) acked(subscription string, acks []string, lenient bool) (late []string) {
	return b.each(subscription, acks, lenient, func(id leaseID, held *lease, known *facts) {
		known.Acks++
		b.settled[subscription]++
		b.end(id, held)
	})
}

// nacked is as acked.
func (b *book) nacked(subscription string, acks []string) (late []string) {
	return b.each(subscription, acks, false, func(id leaseID, held *lease, known *facts) {
		known.Nacks++
		known.ack = ""
		b.end(id, held)
	})
}

// extend moves the end of leases; returns which of them had ended before.
func (b *book) extend(subscription string, acks []string, until time.Time) (late []string) {
	return b.each(subscription, acks, false, func(_ leaseID, held *lease, known *facts) {
		known.Extensions++
		held.expires = until
	})
}

func (b *book) each(subscription string, acks []string, lenient bool, act func(leaseID, *lease, *facts)) (late []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	for _, ack := range acks {
		id := leaseID{subscription, ack}
		held, known := b.leases[id], b.facts[messageID{subscription, messageOf(ack)}]
		switch {
		case held != nil:
			act(id, held, known)
		case lenient && known != nil && known.ack == ack && known.Acks == 0:
			known.Late++
			act(id, nil, known)
		default:
			late = append(late, ack)
			if known != nil {
				known.Late++
			}
		}
	}
	return late
}

// room is how much more an outlet may get.
func (b *book) room(of *outlet) (messages int, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	messages, bytes = batch, 1<<40
	if of.maxMessages > 0 {
		messages = min(messages, int(of.maxMessages-of.messages))
	}
	if of.maxBytes > 0 {
		bytes = of.maxBytes - of.bytes
		if bytes <= 0 {
			messages = 0
		}
	}
	return messages, bytes
}

// Must be called with the lock held.
func (b *book) expire() {
	now := time.Now()
	for id, held := range b.leases {
		if now.After(held.expires) {
			b.end(id, held)
		}
	}
}

// Must be called with the lock held.
func (b *book) end(id leaseID, held *lease) {
	delete(b.leases, id)
	if held != nil && held.outlet != nil {
		held.outlet.messages--
		held.outlet.bytes -= held.bytes
	}
}

// report returns the facts of a subscription's messages, in the order of their first delivery.
func (b *book) report(subscription string) []facts {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := []facts{}
	for _, id := range b.order {
		if id.subscription == subscription {
			found = append(found, *b.facts[id])
		}
	}
	return found
}

// state counts a subscription's messages that were acked or died, and those that are leased.
func (b *book) state(subscription string) (settled, leased int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expire()
	for id := range b.leases {
		if id.subscription == subscription {
			leased++
		}
	}
	return b.settled[subscription], leased
}

// attempts is how often a message was delivered.
func (b *book) attempts(subscription string, message *pb.PubsubMessage) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.of(subscription, message).Deliveries
}

// died notes that a message was sent to the dead-letter topic.
func (b *book) died(subscription string, message *pb.PubsubMessage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.of(subscription, message).Dead = true
	b.settled[subscription]++
}

func size(message *pb.ReceivedMessage) int64 {
	bytes := len(message.Message.Data)
	for name, value := range message.Message.Attributes {
		bytes += len(name) + len(value)
	}
	return int64(bytes)
}
