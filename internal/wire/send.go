package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Send, from a client: Data for the application, or for the user To.
type Send struct {
	Type string          `json:"type"`
	Ref  json.RawMessage `json:"ref,omitempty"`
	// ID, if set, makes it safe to send the same again, also over another
	// connection: with the same id and content it is one message.
	ID        string          `json:"id,omitempty"`
	To        string          `json:"to,omitempty"`
	Ephemeral bool            `json:"ephemeral,omitempty"`
	Data      json.RawMessage `json:"data,omitempty"`
}

// SendAck says that a send was accepted: with the fields of a push's result if it
// went to a user, with Data, what the application answered, if it went there.
type SendAck struct {
	Type      string          `json:"type"`
	Ref       json.RawMessage `json:"ref,omitempty"`
	ID        string          `json:"id,omitempty"`
	Seq       uint64          `json:"seq,omitempty"`
	Stored    bool            `json:"stored,omitempty"`
	Duplicate bool            `json:"duplicate,omitempty"`
	Delivered *int            `json:"delivered,omitempty"`
	Data      json.RawMessage `json:"data,omitempty"`
}

// WithData encodes v, which has no field data itself, as JSON, and data, byte for byte,
// as that field. encoding/json would spell it in another way.
func WithData(v any, data json.RawMessage) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain fields, and a ref that was parsed, always have an encoding
	}
	if data == nil {
		return b
	}
	b = append(b[:len(b)-1], `,"data":`...)
	return append(append(b, data...), '}')
}

// Limits of the claim send_to. What a ticket can hold of it depends on the other
// ids in it.
const maxSendTo = 64

// CheckSendTo reports why a claim send_to cannot be used.
func CheckSendTo(list []string) error {
	if len(list) > maxSendTo {
		return fmt.Errorf("send_to has %d entries; at most %d are allowed: use prefixes", len(list), maxSendTo)
	}
	for _, e := range list {
		if e == "*" {
			continue
		}
		if err := CheckUser(strings.TrimSuffix(e, "*")); err != nil {
			return fmt.Errorf("send_to: %w", err)
		}
	}
	return nil
}

// MaySend tells whether a claim send_to lets its user send to another. An entry that
// ends in * stands for all ids that begin with what is before it.
func MaySend(list []string, to string) bool {
	for _, e := range list {
		if prefix, ok := strings.CutSuffix(e, "*"); e == to || ok && strings.HasPrefix(to, prefix) {
			return true
		}
	}
	return false
}

// CheckSend reports why a send's own fields cannot be used.
func (s *Send) CheckSend() error {
	switch {
	case s.Data == nil:
		return errors.New("a send has data")
	case len(s.ID) > MaxIdempotencyKey:
		return fmt.Errorf("the id of a send has at most %d bytes", MaxIdempotencyKey)
	}
	if s.To != "" {
		if err := CheckUser(s.To); err != nil {
			return fmt.Errorf("to: %w", err)
		}
	}
	return nil
}

// AppMessage is a send as the application gets it, from a webhook or over NATS.
type AppMessage struct {
	ID      string          `json:"id"` // the same when it is repeated
	User    string          `json:"user"`
	Device  string          `json:"device"`
	Session string          `json:"session"`
	Node    string          `json:"node"`
	Time    time.Time       `json:"time"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// Headers of a webhook, and of the application's answer over NATS.
const (
	HeaderSignature = "Dialring-Signature"
	HeaderError     = "Dialring-Error"
)

// MinWebhookSecret is how many bytes the secret of webhooks has at least.
const MinWebhookSecret = 32

// SignWebhook makes the signature of a webhook's body: the time in seconds since
// 1970 and, in hexadecimal, the HMAC-SHA-256 of that time, a dot and the body.
func SignWebhook(secret, body []byte, now time.Time) string {
	t := strconv.FormatInt(now.Unix(), 10)
	return "t=" + t + ",v1=" + hex.EncodeToString(webhookMAC(secret, t, body))
}

// CheckWebhook reports why a webhook's signature does not prove that body comes from
// a node: it was made with another secret, or more than tolerance ago.
func CheckWebhook(secret []byte, signature string, body []byte, now time.Time, tolerance time.Duration) error {
	t, mac, ok := strings.Cut(signature, ",v1=")
	t, named := strings.CutPrefix(t, "t=")
	sec, err := strconv.ParseInt(t, 10, 64)
	sum, err2 := hex.DecodeString(mac)
	switch {
	case len(secret) < MinWebhookSecret:
		return fmt.Errorf("the secret has fewer than %d bytes", MinWebhookSecret)
	case !ok || !named || err != nil || err2 != nil:
		return errors.New("the signature cannot be read")
	case !hmac.Equal(sum, webhookMAC(secret, t, body)):
		return errors.New("the signature is not of this body and secret")
	}
	if age := now.Sub(time.Unix(sec, 0)); age > tolerance || age < -tolerance {
		return fmt.Errorf("the signature is %s old, by this clock", age)
	}
	return nil
}

func webhookMAC(secret []byte, t string, body []byte) []byte {
	h := hmac.New(sha256.New, secret)
	_, _ = h.Write([]byte(t + ".")) // never fails, by its documentation
	_, _ = h.Write(body)
	return h.Sum(nil)
}

// Printable returns s without control characters, and no more than limit bytes of it.
func Printable(s string, limit int) string {
	s = strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, s), "")
	for len(s) > limit {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}
