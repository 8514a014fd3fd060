//go:build !linux

package httpd

import (
	"syscall"
	"time"
)

const waitsAreKnown = false

// waited: this system does not tell; what bounds an overload then is how many requests may
// be under way.
func waited(syscall.RawConn) time.Duration { return 0 }
