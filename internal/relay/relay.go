// Package relay joins two connections, byte by byte, for as long as both last. A pair
// that is idle costs two goroutines and no buffer: one is taken from a pool when there
// is something to read.
package relay

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Limits of a pair.
const (
	// WriteTimeout is how long one side may take no bytes: longer than a node waits
	// until it gives a session up.
	WriteTimeout = 12 * time.Second
	// linger is how long one side may go on after the other has ended.
	linger = 5 * time.Second

	bufferBytes = 32 << 10
	// tlsBytes is the buffer of a direction that is read through TLS, which cannot be
	// asked whether there is something to read.
	tlsBytes = 4 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferBytes); return &b }}

// Pair is two connections that are joined.
//
//	joined --one side ends--> the other may say what it has to, for 5 s --> closed
//	   \--an error, a side that takes nothing for 12 s, or Close----------^
type Pair struct {
	a, b net.Conn
	wg   sync.WaitGroup
}

// Join joins two connections, which are the pair's from now on. It returns at once;
// ended, if it is not nil, is called when both are closed.
func Join(a, b net.Conn, ended func()) *Pair {
	p := &Pair{a: a, b: b}
	p.wg.Add(2)
	go p.carry(a, b)
	go func() {
		p.carry(b, a)
		p.wg.Wait()
		_ = a.Close()
		_ = b.Close()
		if ended != nil {
			ended()
		}
	}()
	return p
}

// Close ends both connections at once.
func (p *Pair) Close() {
	abort(p.a)
	abort(p.b)
}

// carry copies one direction.
func (p *Pair) carry(dst, src net.Conn) {
	defer p.wg.Done()
	if err := pump(dst, src); err != nil {
		p.Close()
		return
	}
	_ = dst.SetReadDeadline(time.Now().Add(linger))
	if w, ok := dst.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
		p.Close()
	}
}

// pump copies until src ends; an error is why it could not.
func pump(dst, src net.Conn) error {
	read := reader(src)
	for {
		b, n, err := read()
		if n > 0 {
			_ = dst.SetWriteDeadline(time.Now().Add(WriteTimeout))
			if _, err := dst.Write((*b)[:n]); err != nil {
				return err
			}
		}
		if b != nil && len(*b) == bufferBytes {
			buffers.Put(b)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// reader returns a function that waits for bytes of c and reads them into a buffer of
// the pool, or, of size tlsBytes, its own.
func reader(c net.Conn) func() (b *[]byte, n int, err error) {
	if s, ok := c.(syscall.Conn); ok && canAsk {
		if raw, err := s.SyscallConn(); err == nil {
			return func() (b *[]byte, n int, err error) {
				var failed error
				err = raw.Read(func(fd uintptr) bool {
					b = buffers.Get().(*[]byte)
					if n, failed = readNow(fd, *b); failed == syscall.EAGAIN {
						buffers.Put(b)
						b = nil
						return false // until there is something
					}
					return true
				})
				switch {
				case err != nil:
					return b, 0, err
				case failed != nil:
					return b, 0, failed
				case n == 0:
					return b, 0, io.EOF
				}
				return b, n, nil
			}
		}
	}
	own := make([]byte, tlsBytes)
	return func() (*[]byte, int, error) {
		n, err := c.Read(own)
		return &own, n, err
	}
}

// abort closes a connection with what it has not delivered.
func abort(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn() // its own Close may wait for a peer that takes nothing
	}
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
