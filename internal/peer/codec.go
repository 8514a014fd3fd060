// Package peer carries calls from locators (and other nodes) to a node: over
// one TCP connection for each pair, which starts as an HTTP upgrade with a
// signed token for that node and then carries batches of calls and replies.
//
//	caller                                            node
//	  | GET /v1/peer/link, Upgrade: dialring-peer/1     |
//	  | Authorization: Bearer <peer token>              |
//	  |------------------------------------------------>|
//	  |<------------------------------------------- 101 |
//	  | batch{epoch, hash, calls}                       |
//	  |------------------------------------------------>|
//	  |<------- replies{epoch, hash, opens the gate, …} |   all, or after 5 ms
//	  |<------- replies{…}                              |   those that took longer
//
// The next batch collects while one is under way, and half a millisecond longer
// when there is much to send: an idle link sends a call at once, a busy one
// sends many together. A request through net/http for each
// batch would cost both sides more.
package peer

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/dialring/dialring/internal/wire"
)

// Path and Protocol of the upgrade.
const (
	Path     = "/v1/peer/link"
	Protocol = "dialring-peer/1"
)

// Headers of a dial that a locator relays to a node's peer address: its peer token, and
// the address of the client.
const (
	HeaderEdge   = "Dialring-Edge"
	HeaderClient = "Dialring-Client"
)

// Frames on a link: 4 bytes length of what follows, 1 byte type, then
// the ring's epoch (uvarint) and hash (4 bytes), then the type's own.
const (
	frameBatch   = 1 // uvarint count, calls
	frameReplies = 2 // 1 byte flags, uvarint count, replies

	headerBytes = 5
	// MaxFrame bounds a frame: a batch holds at most batchBytes, or one call.
	MaxFrame   = 4 << 20
	batchBytes = 512 << 10
	batchCalls = 1024
)

// Op is what a call asks for.
type Op byte

const (
	OpPush         Op = iota + 1 // Body to User's sessions, to those of Device if it is set
	OpBroadcast                  // Body to every session
	OpSessions                   // of User: Body may be a JSON UserQuery; JSON, a User
	OpKick                       // end sessions of User; Body is a JSON Kick
	OpPresence                   // Body is a JSON list of users; JSON, sessions by user
	OpDrain                      // leave the ring and end
	OpRing                       // Body is a ring document that the node may not have
	OpPlan                       // Body is a JSON map of weights by node; JSON, own sessions by the node they would go to
	OpAcked                      // of User: Body is a JSON Acked; Delivered is how many sessions have acknowledged
	OpMissing                    // Body is a JSON list of users of whom the caller does not know whether they are still online
	OpGroupChange                // of a group, by its key: Body is a JSON GroupChange
	OpGroupMembers               // the same: Body is a JSON GroupMembers
	OpGroupPush                  // the same: Body is a JSON GroupPush
	OpLook                       // look for messages of User in the store that another node appended
)

// Kick says which sessions of a user are to end, and with which close code. All
// of them if neither Device nor Session is set.
type Kick struct {
	Device  string `json:"device,omitempty"`
	Session string `json:"session,omitempty"`
	Code    int    `json:"code"`
	Revoke  bool   `json:"revoke,omitempty"` // also who dials with a ticket of before
}

// Acked asks how many sessions have acknowledged a stored message; the answer
// comes when one has, or after some time.
type Acked struct {
	Seq    uint64 `json:"seq"`
	WaitMS int64  `json:"wait_ms"`
}

// Status of a reply.
type Status byte

const (
	StatusOK          Status = iota
	StatusMisdirected        // the node does not own the user; the frame's epoch says by which ring
	StatusUnreached          // nobody had it: the user is moving, and the former owner cannot be reached
	StatusUnsure             // perhaps nobody had it: as above, and it did not answer
	StatusBad                // the call is not one that the node understands or may carry out
	StatusDuplicate          // stored before, by the same key; Body is the id of that message
	StatusFull               // the group has as many members as it may have
	StatusReading            // the members of the group are being read, and the next call goes on; Body says so
	StatusKeyReused          // the key was used for another message
	StatusStore              // the store did not take the message; Body says why
)

// Flags.
const (
	flagJSON      = 1  // of a call: the body is JSON
	flagForwarded = 2  // of a call: it comes from the user's owner, for the sessions that have not moved yet
	flagDurable   = 4  // of a call: the message is to be stored
	flagStored    = 8  // of a call: the message was stored by the user's owner
	flagFrom      = 16 // of a call: a user sent the message
	flagTrace     = 32 // of a call: it is part of a span
	flagFirst     = 1  // of replies: the next batch may come
)

// Reply is what a node answers to a call.
type Reply struct {
	Status    Status
	Delivered int
	Seq       uint64 // of a stored message
	Body      []byte // what the op says; of a forwarded push, a JSON list of the sessions it was written to
}

var errFrame = errors.New("malformed frame on a peer link")

func appendHeader(b []byte, typ byte, ref wire.RingRef) []byte {
	b = append(b, 0, 0, 0, 0, typ)
	b = binary.AppendUvarint(b, ref.Epoch)
	var h [4]byte
	_, _ = hex.Decode(h[:], []byte(ref.Hash)) // an empty ring has none: zeros
	return append(b, h[:]...)
}

// finish fills in the length of the frame that starts at b[0].
func finish(b []byte) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-4)) // #nosec G115 -- frames are bounded far below
	return b
}

func appendBytes[T ~string | ~[]byte](b []byte, v T) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

// readFrame reads a frame whole. The slice is the caller's.
func readFrame(r io.Reader) (typ byte, body []byte, err error) {
	var h [headerBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n < 1 || n > MaxFrame {
		return 0, nil, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	body = make([]byte, n-1)
	_, err = io.ReadFull(r, body)
	return h[4], body, err
}

// reader takes values off a frame's body; the first one that is not there sets
// bad, and all after it are zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) bytes() []byte { return r.take(r.uvarint()) }

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) ref() wire.RingRef {
	e := r.uvarint()
	h := r.take(4)
	if r.bad || e == 0 {
		return wire.RingRef{}
	}
	return wire.RingRef{Epoch: e, Hash: hex.EncodeToString(h)}
}
