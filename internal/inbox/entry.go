package inbox

import (
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Entry is one stored message.
type Entry struct {
	Cursor               // behind it
	Prev   uint64        // tag of the message before it
	ID     string        // of the message: printable ASCII without spaces
	Time   time.Time     // when the owner took it, by its clock, to the millisecond
	TTL    time.Duration // 0: as long as the store keeps it
	JSON   bool          // whether Body is
	From   string        // user who sent it; "": a service
	Body   []byte
}

// Expired tells whether the message's own time is over. The store keeps it all
// the same until its limits take it, so that the numbers behind it stay known.
func (e *Entry) Expired(now time.Time) bool { return e.TTL > 0 && !now.Before(e.Time.Add(e.TTL)) }

// Meta is what an entry has beside its body, as one line:
//
//	1 <seq> <tag> <prev> <milliseconds since 1970> <ttl in ms> <j or b> <id> [<from in base64url>]
func (e *Entry) Meta() string {
	b := make([]byte, 0, 128)
	b = append(b, "1 "...)
	for _, v := range [...]uint64{e.Seq, e.Tag, e.Prev, uint64(e.Time.UnixMilli()), uint64(e.TTL.Milliseconds())} {
		b = strconv.AppendUint(b, v, 36)
		b = append(b, ' ')
	}
	if e.JSON {
		b = append(b, 'j', ' ')
	} else {
		b = append(b, 'b', ' ')
	}
	b = append(b, e.ID...)
	if e.From != "" {
		b = append(b, ' ')
		b = base64.RawURLEncoding.AppendEncode(b, []byte(e.From))
	}
	return string(b)
}

var errMeta = errors.New("a stored message cannot be read: it was not written by this program")

// ParseMeta reads Meta's line; pos and body are beside it.
func ParseMeta(meta string, pos uint64, body []byte) (Entry, error) {
	f := strings.Fields(meta)
	if len(f) != 8 && len(f) != 9 || f[0] != "1" || f[6] != "j" && f[6] != "b" {
		return Entry{}, errMeta
	}
	from := ""
	if len(f) == 9 {
		b, err := base64.RawURLEncoding.Strict().DecodeString(f[8])
		if err != nil || len(b) == 0 {
			return Entry{}, errMeta
		}
		from = string(b)
	}
	var v [5]uint64
	for i := range v {
		var err error
		if v[i], err = strconv.ParseUint(f[i+1], 36, 64); err != nil {
			return Entry{}, errMeta
		}
	}
	return Entry{Cursor: Cursor{Seq: v[0], Pos: pos, Tag: v[1]}, Prev: v[2], Time: time.UnixMilli(int64(v[3])),
		TTL: time.Duration(v[4]) * time.Millisecond, JSON: f[6] == "j", ID: f[7], From: from, Body: body}, nil
}
