//go:build unix

package wsnode

import "syscall"

// writeNow writes what the socket takes at once, in one system call, and does
// not wait for more. n < len(b) without an error: the rest must be written
// before anything else.
func (c *lingering) writeNow(b []byte) (n int, err error) {
	c.mu.Lock() // nobody holds it for long: while writeAll waits for the peer, the session queues
	defer c.mu.Unlock()
	if c.over {
		return 0, errOver
	}
	if c.raw == nil {
		return 0, nil
	}
	var werr error
	err = c.raw.Write(func(fd uintptr) bool {
		for {
			n, werr = syscall.Write(int(fd), b)
			if werr != syscall.EINTR {
				return true
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case werr == syscall.EAGAIN:
		return 0, nil
	case werr != nil:
		return 0, werr
	}
	if n > 0 && n < len(b) {
		c.partial = true
	}
	return n, nil
}
