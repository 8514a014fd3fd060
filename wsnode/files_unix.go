//go:build unix

package wsnode

import (
	"math"
	"syscall"
)

// reservedFiles are kept for listeners, NATS, peer links and logs.
const reservedFiles = 200

// sessionLimit is how many sessions the limit of open files leaves room for:
// a dial beyond it is refused with 503 before accept itself fails.
func sessionLimit() int64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return max(1, int64(l.Cur)-reservedFiles)
}
