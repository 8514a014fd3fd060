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
	// Unopened, if set, is why JSON, From and Body are not known.
	Unopened *Unopened

	sealed sealedMeta // as it lies in the store
}

// sealedMeta is what opening a sealed message takes; the zero value: it is not sealed.
type sealedMeta struct{ meta, key string }

// Expired tells whether the message's own time is over. The store keeps it all
// the same until its limits take it, so that the numbers behind it stay known.
func (e *Entry) Expired(now time.Time) bool { return e.TTL > 0 && !now.Before(e.Time.Add(e.TTL)) }

// Never tells whether nobody will get the message: its time is over, or it will never be
// opened.
func (e *Entry) Never(now time.Time) bool {
	return e.Expired(now) || e.Unopened != nil && e.Unopened.Final()
}

// Versions of an entry's line, and kinds of bodies.
const (
	metaPlain  = '1'
	metaSealed = '2'

	kindJSON   = 'j'
	kindBytes  = 'b'
	kindSealed = 's'
)

func (e *Entry) kind() byte {
	if e.JSON {
		return kindJSON
	}
	return kindBytes
}

// Meta is what an entry has beside its body, as one line:
//
//	1 <seq> <tag> <prev> <milliseconds since 1970> <ttl in ms> <j or b> <id> [<from in base64url>]
func (e *Entry) Meta() string {
	from := ""
	if e.From != "" {
		from = base64.RawURLEncoding.EncodeToString([]byte(e.From))
	}
	return e.meta(metaPlain, from)
}

// meta is the line in that version; that of a sealed one ends with its key.
func (e *Entry) meta(version byte, last string) string {
	b := make([]byte, 0, 128)
	b = append(b, version, ' ')
	// #nosec G115 -- times after 1970
	for _, v := range [...]uint64{e.Seq, e.Tag, e.Prev, uint64(e.Time.UnixMilli()), uint64(e.TTL.Milliseconds())} {
		b = strconv.AppendUint(b, v, 36)
		b = append(b, ' ')
	}
	kind := byte(kindSealed)
	if version == metaPlain {
		kind = e.kind()
	}
	b = append(b, kind, ' ')
	b = append(b, e.ID...)
	if last != "" {
		b = append(b, ' ')
		b = append(b, last...)
	}
	return string(b)
}

var errMeta = errors.New("a stored message cannot be read: it was not written by this program, or by a newer one")

// ParseMeta reads Meta's line; pos and body are beside it.
func ParseMeta(meta string, pos uint64, body []byte) (Entry, error) {
	e, err := parseStored(meta, pos, body)
	if err == nil && e.sealed.key != "" {
		return Entry{}, errMeta
	}
	return e, err
}

// parseStored reads the line of a message in the store, which may be sealed.
func parseStored(meta string, pos uint64, body []byte) (Entry, error) {
	f := strings.Fields(meta)
	if len(f) != 8 && len(f) != 9 {
		return Entry{}, errMeta
	}
	e := Entry{ID: f[7], Body: body}
	switch {
	case f[0] == string(metaPlain) && (f[6] == string(kindJSON) || f[6] == string(kindBytes)):
		e.JSON = f[6] == string(kindJSON)
		if len(f) == 9 {
			b, err := base64.RawURLEncoding.Strict().DecodeString(f[8])
			if err != nil || len(b) == 0 {
				return Entry{}, errMeta
			}
			e.From = string(b)
		}
	case f[0] == string(metaSealed) && f[6] == string(kindSealed) && len(f) == 9:
		e.sealed = sealedMeta{meta: meta, key: f[8]}
	default:
		return Entry{}, errMeta
	}
	var v [5]uint64
	for i := range v {
		var err error
		if v[i], err = strconv.ParseUint(f[i+1], 36, 64); err != nil {
			return Entry{}, errMeta
		}
	}
	e.Cursor, e.Prev = Cursor{Seq: v[0], Pos: pos, Tag: v[1]}, v[2]
	e.Time, e.TTL = time.UnixMilli(int64(v[3])), time.Duration(v[4])*time.Millisecond // #nosec G115 -- as meta wrote it
	return e, nil
}
