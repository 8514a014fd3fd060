// Package wire holds the types and rules of the public contract: ids, frames,
// close codes, HTTP bodies and problem documents. It uses the standard library
// only, so that the client SDK stays light, and it does no I/O.
package wire

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"
)

// Limits of ids, in bytes.
const (
	MaxUserID   = 128
	MaxDeviceID = 64
	MaxNodeID   = 63
	MaxCursor   = 64
)

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// RandomID returns n random bytes as a-z 2-7, which every kind of id may hold.
func RandomID(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, by its documentation
	return idEncoding.EncodeToString(b)
}

// IDs makes message ids: its process's own prefix, and a count. It may be used
// concurrently.
type IDs struct {
	Prefix string
	n      atomic.Uint64
}

// Next returns the next id.
func (i *IDs) Next() string {
	b := make([]byte, 0, 40)
	b = append(b, i.Prefix...)
	return string(strconv.AppendUint(b, i.n.Add(1), 36))
}

// HostID makes of a host name what a node id may hold, of at most limit bytes.
func HostID(host string, limit int) string {
	id := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(host))
	return id[:min(len(id), limit)]
}

// CheckUser reports why id is no user id: 1 to 128 bytes of valid UTF-8 without
// control characters.
func CheckUser(id string) error {
	switch {
	case id == "":
		return errors.New("a user id must not be empty")
	case len(id) > MaxUserID:
		return fmt.Errorf("a user id has at most %d bytes, this one has %d", MaxUserID, len(id))
	case !utf8.ValidString(id):
		return errors.New("a user id must be valid UTF-8")
	}
	for i := 0; i < len(id); i++ { // the common case, ASCII, without decoding
		if c := id[i]; c >= utf8.RuneSelf {
			for _, r := range id[i:] {
				if unicode.IsControl(r) {
					return fmt.Errorf("a user id must not contain control characters (found %U)", r)
				}
			}
			return nil
		} else if c < 0x20 || c == 0x7f {
			return fmt.Errorf("a user id must not contain control characters (found %U)", rune(c))
		}
	}
	return nil
}

// CheckDevice reports why id is no device id: 1 to 64 of A-Z a-z 0-9 . _ -
func CheckDevice(id string) error {
	if id == "" || len(id) > MaxDeviceID {
		return fmt.Errorf("a device id has 1 to %d characters, this one has %d", MaxDeviceID, len(id))
	}
	for i := 0; i < len(id); i++ {
		c := id[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return fmt.Errorf("a device id consists of A-Z a-z 0-9 . _ - (found %q)", c)
		}
	}
	return nil
}

// CheckNode reports why id is no node id: 1 to 63 of a-z 0-9 -
func CheckNode(id string) error {
	if id == "" || len(id) > MaxNodeID {
		return fmt.Errorf("a node id has 1 to %d characters, this one has %d", MaxNodeID, len(id))
	}
	for i := 0; i < len(id); i++ {
		c := id[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return fmt.Errorf("a node id consists of a-z 0-9 - (found %q)", c)
		}
	}
	return nil
}

// CheckCursor reports why c cannot be a cursor: 1 to 64 printable ASCII
// characters. Whether it is one of a user's log only the log knows.
func CheckCursor(c string) error {
	if c == "" || len(c) > MaxCursor {
		return fmt.Errorf("a cursor has 1 to %d characters, this one has %d", MaxCursor, len(c))
	}
	for i := 0; i < len(c); i++ {
		if c[i] <= ' ' || c[i] > '~' {
			return errors.New("a cursor consists of printable ASCII characters")
		}
	}
	return nil
}

// HalfEscapes tells whether a JSON text may have an escaped half of a surrogate pair,
// which is no character: encoding/json makes U+FFFD of it, and so another user's id.
func HalfEscapes(b []byte) bool {
	return bytes.Contains(b, []byte(`\ud`)) || bytes.Contains(b, []byte(`\uD`))
}

// BrokenID tells whether an id was made of one. halves: what HalfEscapes says of the
// text that it was read from.
func BrokenID(id string, halves bool) bool { return halves && strings.ContainsRune(id, utf8.RuneError) }

// rawPath is the path of a parsed URL as it came. url.URL.EscapedPath would encode it
// anew if it has a byte that should have been encoded, such as one of é or a quote, and
// make a / of each %2F in it.
func rawPath(u *url.URL) string {
	if u.RawPath != "" {
		return u.RawPath
	}
	return u.EscapedPath()
}

// PathIDs returns the parts of a path behind prefix, each decoded once.
func PathIDs(u *url.URL, prefix string) ([]string, error) {
	raw, ok := strings.CutPrefix(rawPath(u), prefix)
	if !ok {
		return nil, errors.New("the path cannot be read")
	}
	ids := strings.Split(raw, "/")
	for i, id := range ids {
		var err error
		if ids[i], err = url.PathUnescape(id); err != nil {
			return nil, errors.New("the path is not validly percent-encoded")
		}
	}
	return ids, nil
}

// PathUser takes the user id out of a request's raw (still encoded) path: what
// stands behind prefix, up to suffix. It is decoded exactly once, so that
// a%2Fb and a%252Fb are two users; an unencoded slash is no part of an id.
func PathUser(u *url.URL, prefix, suffix string) (string, error) {
	raw, ok := strings.CutPrefix(rawPath(u), prefix)
	if ok {
		raw, ok = strings.CutSuffix(raw, suffix)
	}
	if !ok || strings.Contains(raw, "/") {
		return "", errors.New("a / within a user id is written %2F in a path")
	}
	id, err := url.PathUnescape(raw)
	if err != nil {
		return "", errors.New("the user id in the path is not validly percent-encoded")
	}
	return id, CheckUser(id)
}
