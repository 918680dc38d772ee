package main

import (
	"bufio"
	"net"
)

// split passes on connections that begin as HTTP/2 does, and all others.
func split(from net.Listener) (http2, others *branch) {
	http2, others = newBranch(from), newBranch(from)
	go func() {
		defer close(http2.connections)
		defer close(others.connections)
		for {
			connection, err := from.Accept()
			if err != nil {
				return
			}
			go route(connection, http2, others)
		}
	}()
	return http2, others
}

func route(connection net.Conn, http2, others *branch) {
	// The other end may have closed the branches.
	defer func() {
		if recover() != nil {
			connection.Close()
		}
	}()
	reader := bufio.NewReader(connection)
	begin, err := reader.Peek(4)
	if err != nil {
		connection.Close()
		return
	}
	to := others
	if string(begin) == "PRI " {
		to = http2
	}
	to.connections <- peeked{connection, reader}
}

// peeked is a connection whose first bytes have been read already.
type peeked struct {
	net.Conn
	reader *bufio.Reader
}

func (p peeked) Read(into []byte) (int, error) { return p.reader.Read(into) }

// branch is a listener that gets its connections from another.
type branch struct {
	net.Listener
	connections chan net.Conn
}

func newBranch(of net.Listener) *branch { return &branch{of, make(chan net.Conn)} }

func (b *branch) Accept() (net.Conn, error) {
	connection, open := <-b.connections
	if !open {
		return nil, net.ErrClosed
	}
	return connection, nil
}
