package peer

import (
	"errors"
	"syscall"
)

// Why a call has no reply.
var (
	// ErrUnreachable: the call did not reach the node.
	ErrUnreachable = errors.New("the node cannot be reached")
	// ErrLost: the call was sent, and the link ended before the reply; it may
	// have been carried out.
	ErrLost = errors.New("the link to the node ended before it answered")
	// ErrBusy: too much is waiting for this node.
	ErrBusy = errors.New("too many calls wait for this node")
)

// linkError says what a failed link means, and why it failed.
type linkError struct{ kind, cause error }

func (e *linkError) Error() string   { return e.kind.Error() + ": " + e.cause.Error() }
func (e *linkError) Unwrap() []error { return []error{e.kind, e.cause} }

// Refused tells whether nothing listened at the node's address.
func Refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
