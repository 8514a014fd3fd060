//go:build unix

package relay

import "syscall"

// canAsk tells whether a socket can be asked whether there is something to read.
const canAsk = true

// readNow reads what the socket has, or returns EAGAIN.
func readNow(fd uintptr, b []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), b)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
