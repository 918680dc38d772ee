// A Pub/Sub server for tests: pstest, the fake of Google's own Go client, as a process of its own.
//
// Topics, subscriptions, publishing and the choice of what is delivered next are pstest's. This program adds what pstest lacks
// and the tests need:
//   - StreamingPull with flow control (messages and bytes), batches and heartbeats. pstest sends one message at a time, ignores
//     the limits, and blocks all clients when one that stalls sends a heartbeat.
//   - Exactly-once: an ack, or an extension, of a lease that has ended is refused. pstest accepts it.
//   - The retry policy's backoff after a nack, and the dead-letter policy. pstest ignores the former; its dead letters are
//     published without end once a message was nacked.
//   - A restart that keeps topics, subscriptions and messages, as the service does; errors on request; the REST calls for
//     administration on the port of the gRPC calls, as Google's emulator has them; permissions that can be denied.
//
// What remains different from the service: an ordered subscription delivers one message of a key at a time; messages that no
// subscriber has acked vanish after 10 minutes; a filter, snapshots and seeks are pstest's; nothing is
// authenticated; messages are in memory and end with the process.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	pb "cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

func main() {
	port := flag.Int("port", 0, "port of the service: gRPC and REST")
	control := flag.Int("control", 0, "port of the control calls, which works while the service is down")
	flag.Parse()
	fake := pstest.NewServerWithAddress("127.0.0.1:0")
	front := &front{port: *port, service: newService(fake)}
	if err := front.up(); err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(fmt.Sprintf("127.0.0.1:%d", *control), front.control()))
}

// front listens for the service. Taking it down ends all connections; the state stays.
type front struct {
	port    int
	service *service
	mu      sync.Mutex
	grpc    *grpc.Server
	rest    *http.Server
	inlet   net.Listener
}

func (f *front) up() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.inlet != nil {
		return nil
	}
	inlet, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", f.port))
	if err != nil {
		return err
	}
	f.inlet = inlet
	f.grpc = grpc.NewServer(
		// The service takes messages of 10 MB.
		grpc.MaxRecvMsgSize(20<<20),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(f.service.failures.unary),
		grpc.StreamInterceptor(f.service.failures.stream),
	)
	pb.RegisterPublisherServer(f.grpc, f.service)
	pb.RegisterSubscriberServer(f.grpc, f.service)
	f.rest = &http.Server{Handler: f.service.rest()}
	grpcs, others := split(inlet)
	go f.grpc.Serve(grpcs)
	go f.rest.Serve(others)
	return nil
}

func (f *front) down() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.inlet == nil {
		return
	}
	f.inlet.Close()
	f.grpc.Stop()
	f.rest.Close()
	f.inlet = nil
}
