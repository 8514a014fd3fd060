// Package inbox keeps users' messages until their devices have them: one log for
// each user, appended to by the node that owns the user, and nobody else.
//
//	push --> Log: one append at a time, in order --> Store: JetStream, or memory
//	             |                                       ^
//	             +--> Deliver, in order                  | Read
//	                                        sessions that resume
//
// Log runs the appends (log.go), Find tells from where a session resumes
// (resume.go), and a Cursor names a place in a log (cursor.go).
package inbox

import (
	"context"
	"encoding/base64"
	"errors"
	"time"
)

// Store keeps logs, and positions of devices in them. It may be used
// concurrently. Every error that is not named here means that the store did not
// answer, or not in time: an Append may have been stored then.
type Store interface {
	// Append stores e, whose Pos does not count, as the last message of the
	// user's log, if that is still the one at expect (0: it has none). It returns
	// where e lies, once the store promises to keep it. When key was appended
	// within the last minutes it stores nothing and returns that message's place,
	// and dup, also when the log ends with another one than expect (a NATS cluster does) or
	// not then (one server). ErrConflict: the last message is another one.
	Append(ctx context.Context, user string, e *Entry, key string, expect uint64) (pos uint64, dup bool, err error)
	// Last returns the newest message of the log, ErrNone if there is none. It is
	// what the store holds now, not what a part of it remembers.
	Last(ctx context.Context, user string) (Entry, error)
	// At returns the message of the user at pos, ErrNone if it is not kept.
	At(ctx context.Context, user string, pos uint64) (Entry, error)
	// Read returns messages of the log from pos on, in order: all, or at least the
	// first, and about as many as fit into Chunk. It may not know the newest ones yet. A
	// message that cannot be opened is in its place, with the reason (Entry.Unopened).
	Read(ctx context.Context, user string, pos uint64) ([]Entry, error)

	// Position returns what SetPosition stored for a device of the user, and its
	// revision; ErrNone if there is nothing.
	Position(ctx context.Context, user, device string) (Cursor, uint64, error)
	// SetPosition stores a position if the revision is still rev (0: none), and
	// returns the new one. ErrConflict: it is not.
	SetPosition(ctx context.Context, user, device string, c Cursor, rev uint64) (uint64, error)

	// Check writes something small and returns whether the store took it.
	Check(ctx context.Context) error
}

// AsyncStore is a Store that takes many messages without a goroutine for each.
type AsyncStore interface {
	Store
	// AppendAsync is Append, which calls done, once, with what that would return,
	// after deadline at the latest. done may be called before AppendAsync returns; it
	// must not block.
	AppendAsync(user string, e *Entry, key string, expect uint64, deadline time.Time, done func(pos uint64, dup bool, err error))
	// SetPositionAsync is SetPosition, in the same way.
	SetPositionAsync(user, device string, c Cursor, rev uint64, deadline time.Time, done func(rev uint64, err error))
	// Together calls f; what is appended meanwhile may be sent when f returns.
	Together(f func())
}

// together calls f; what it gives to a store that can goes there together.
func together(s Store, f func()) {
	if async, ok := s.(AsyncStore); ok {
		async.Together(f)
		return
	}
	f()
}

// Chunk is how many bytes of messages Read returns at most, but for one that is
// longer.
const Chunk = 256 << 10

// chunkMessages is how many messages Read returns at most.
const chunkMessages = 512

// Errors of a Store.
var (
	ErrNone     = errors.New("the store has no such message")
	ErrConflict = errors.New("another wrote to this log")
)

// encode writes an id so that no byte of it is one that NATS takes for a dot, a
// wildcard or the end of a subject: unpadded base64url, which keeps two ids apart.
func encode(id string) string { return base64.RawURLEncoding.EncodeToString([]byte(id)) }

// Limits is what a store keeps.
type Limits struct {
	Messages int           // of each user; beyond it the oldest go
	Age      time.Duration // of a message
	Window   time.Duration // for which keys are compared
}
