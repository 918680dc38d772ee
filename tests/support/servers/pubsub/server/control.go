package main

import (
	"context"
	"encoding/json"
	"net/http"
	"path"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// failures are answers on request.
type failures struct {
	mu    sync.Mutex
	codes map[string]codes.Code
}

// check returns the error to answer a call with: a method of gRPC, or "GET topics" for one of REST.
func (f *failures) check(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if code, failing := f.codes[call]; failing {
		return status.Errorf(code, "%s fails, as a test wants it", call)
	}
	return nil
}

func (f *failures) set(call string, code codes.Code) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.codes, call)
	if code != codes.OK {
		f.codes[call] = code
	}
}

func (f *failures) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := f.check(path.Base(info.FullMethod)); err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

func (f *failures) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := f.check(path.Base(info.FullMethod)); err != nil {
		return err
	}
	return handler(service, stream)
}

// control answers the tests. Its calls change the state of the service, or tell it.
func (f *front) control() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/v1/", f.service.rest())
	mux.HandleFunc("POST /up", func(w http.ResponseWriter, _ *http.Request) {
		if err := f.up(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("POST /down", func(http.ResponseWriter, *http.Request) { f.down() })
	mux.HandleFunc("POST /fail", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.FormValue("code"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.service.failures.set(r.FormValue("call"), codes.Code(code))
	})
	mux.HandleFunc("POST /deny", func(_ http.ResponseWriter, r *http.Request) {
		f.service.mu.Lock()
		defer f.service.mu.Unlock()
		f.service.denied[r.FormValue("permission")] = true
	})
	mux.HandleFunc("POST /stream-limit", func(w http.ResponseWriter, r *http.Request) {
		limit, err := time.ParseDuration(r.FormValue("limit"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.service.mu.Lock()
		defer f.service.mu.Unlock()
		f.service.streamLimit = limit
	})
	mux.HandleFunc("GET /streams", func(w http.ResponseWriter, _ *http.Request) {
		f.service.mu.Lock()
		defer f.service.mu.Unlock()
		json.NewEncoder(w).Encode(f.service.streams)
	})
	mux.HandleFunc("GET /depth", func(w http.ResponseWriter, r *http.Request) {
		waiting, leased, err := f.service.depth(r.Context(), r.FormValue("subscription"))
		if err != nil {
			refuse(w, err)
			return
		}
		json.NewEncoder(w).Encode([]int{waiting, leased})
	})
	mux.HandleFunc("GET /messages", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(f.service.book.report(r.FormValue("subscription")))
	})
	return mux
}
