package inbox

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/dialring/dialring/internal/wire"
)

// Cursor names a place in a user's log: behind the message Seq, which lies at
// Pos in the store's stream. Tag tells logs apart that number alike: it is the
// last link of a chain over the ids of all messages up to there, so a log that
// lost its end and goes on with other messages, or was made anew, has other tags.
// The zero Cursor is the start of every log.
type Cursor struct {
	Seq uint64 // counts the user's messages, from 1
	Pos uint64 // sequence in the stream; 0: not known, the log's stream holds nothing of it any more
	Tag uint64
}

// errCursor is why a text is no cursor.
var errCursor = errors.New("a cursor is what a message or a welcome had in its field cursor or since")

// String returns the cursor as it goes over the wire, at most 64 bytes. To
// clients it is opaque.
func (c Cursor) String() string {
	if c == (Cursor{}) {
		return wire.CursorStart
	}
	b := make([]byte, 0, wire.MaxCursor)
	b = strconv.AppendUint(b, c.Seq, 36)
	b = append(b, '-')
	b = strconv.AppendUint(b, c.Pos, 36)
	b = append(b, '-')
	return string(strconv.AppendUint(b, c.Tag, 36))
}

// ParseCursor reads what String wrote, and nothing else.
func ParseCursor(s string) (Cursor, error) {
	if s == wire.CursorStart {
		return Cursor{}, nil
	}
	var c Cursor
	parts := strings.Split(s, "-")
	if len(parts) != 3 {
		return c, errCursor
	}
	for i, to := range []*uint64{&c.Seq, &c.Pos, &c.Tag} {
		v, err := strconv.ParseUint(parts[i], 36, 64)
		if err != nil {
			return Cursor{}, errCursor
		}
		*to = v
	}
	if c.String() != s { // one spelling only: no sign, no zeros in front
		return Cursor{}, errCursor
	}
	return c, nil
}

// next is the cursor behind the message id of user that follows c, at pos.
func (c Cursor) next(user, id string, pos uint64) Cursor {
	b := make([]byte, 8, 8+len(user)+len(id)+1)
	binary.BigEndian.PutUint64(b, c.Tag)
	b = append(b, user...)
	b = append(b, 0) // in no user id
	b = append(b, id...)
	sum := sha256.Sum256(b)
	return Cursor{Seq: c.Seq + 1, Pos: pos, Tag: binary.BigEndian.Uint64(sum[:])}
}

// GoString helps tests.
func (c Cursor) GoString() string { return fmt.Sprintf("%d@%d", c.Seq, c.Pos) }
