package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	pb "cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// rest answers the calls for administration: /v1/projects/P/topics/T and /v1/projects/P/subscriptions/S, by GET, PUT and
// DELETE, and their :testIamPermissions; and a topic's :publish.
func (s *service) rest() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, verb, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), ":")
		body, err := io.ReadAll(r.Body)
		if err != nil {
			refuse(w, err)
			return
		}
		if verb == "testIamPermissions" {
			s.permissions(w, r, name, body)
			return
		}
		method := r.Method
		if verb != "" {
			method = verb
		}
		answer, err := s.administer(r.Context(), method, name, body)
		if err != nil {
			refuse(w, err)
			return
		}
		text, err := protojson.Marshal(answer)
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(text)
	})
}

func (s *service) administer(ctx context.Context, method, name string, body []byte) (proto.Message, error) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || parts[0] != "projects" {
		return nil, status.Errorf(codes.NotFound, "no such resource: %s", name)
	}
	call := method + " " + parts[2]
	if err := s.failures.check(call); err != nil {
		return nil, err
	}
	switch call {
	case "GET topics":
		return s.GetTopic(ctx, &pb.GetTopicRequest{Topic: name})
	case "PUT topics":
		topic := &pb.Topic{}
		if err := parse(body, topic); err != nil {
			return nil, err
		}
		topic.Name = name
		return s.CreateTopic(ctx, topic)
	case "publish topics":
		request := &pb.PublishRequest{}
		if err := parse(body, request); err != nil {
			return nil, err
		}
		request.Topic = name
		return s.Publish(ctx, request)
	case "DELETE topics":
		return s.DeleteTopic(ctx, &pb.DeleteTopicRequest{Topic: name})
	case "GET subscriptions":
		return s.GetSubscription(ctx, &pb.GetSubscriptionRequest{Subscription: name})
	case "PUT subscriptions":
		subscription := &pb.Subscription{}
		if err := parse(body, subscription); err != nil {
			return nil, err
		}
		subscription.Name = name
		return s.CreateSubscription(ctx, subscription)
	case "DELETE subscriptions":
		return s.DeleteSubscription(ctx, &pb.DeleteSubscriptionRequest{Subscription: name})
	}
	return nil, status.Errorf(codes.Unimplemented, "%s is not offered", call)
}

func parse(body []byte, into proto.Message) error {
	if err := protojson.Unmarshal(body, into); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

// permissions returns those that were asked for and are not denied.
func (s *service) permissions(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	var asked struct {
		Permissions []string `json:"permissions"`
	}
	err := json.Unmarshal(body, &asked)
	if err == nil {
		_, err = s.administer(r.Context(), "GET", name, nil)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	granted := []string{}
	s.mu.Lock()
	for _, one := range asked.Permissions {
		if !s.denied[one] {
			granted = append(granted, one)
		}
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"permissions": granted})
}

func refuse(w http.ResponseWriter, err error) {
	said := status.Convert(err)
	http := map[codes.Code]int{
		codes.InvalidArgument: 400, codes.FailedPrecondition: 400, codes.Unauthenticated: 401, codes.PermissionDenied: 403,
		codes.NotFound: 404, codes.AlreadyExists: 409, codes.ResourceExhausted: 429, codes.Unimplemented: 501,
		codes.Unavailable: 503, codes.DeadlineExceeded: 504,
	}[said.Code()]
	if http == 0 {
		http = 500
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http)
	json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"code": http, "message": said.Message(), "status": code.Code(said.Code()).String(),
	}})
}
