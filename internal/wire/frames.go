package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Frame types, node to client unless said otherwise.
const (
	TypeWelcome = "welcome"
	TypeMessage = "message"
	TypeSkip    = "skip"
	TypeResumed = "resumed"
	TypeAck     = "ack" // both ways
	TypeError   = "error"
	TypeMove    = "move"
	TypePong    = "pong"
	TypeResume  = "resume" // client to node
	TypeSend    = "send"   // client to node
	TypePing    = "ping"   // client to node
)

// CursorStart is the cursor before the first message of every log.
const CursorStart = "0"

// Welcome is the first frame of every session.
type Welcome struct {
	Type            string `json:"type"`
	Session         string `json:"session"`
	User            string `json:"user"`
	Device          string `json:"device"`
	Node            string `json:"node"`
	Epoch           uint64 `json:"epoch"`
	Since           string `json:"since"`
	Head            uint64 `json:"head"`
	Pending         uint64 `json:"pending"`
	Gap             bool   `json:"gap"`
	PingIntervalMS  int64  `json:"ping_interval_ms"`
	MaxMessageBytes int    `json:"max_message_bytes"`
}

// Message is a push as it arrives. Without Seq it is ephemeral.
type Message struct {
	Type    string          `json:"type"`
	ID      string          `json:"id"`
	Time    time.Time       `json:"time"`
	From    string          `json:"from,omitempty"`
	Seq     uint64          `json:"seq,omitempty"`
	Cursor  string          `json:"cursor,omitempty"`
	Data    json.RawMessage `json:"data,omitempty"`
	DataB64 []byte          `json:"data_b64,omitempty"`
}

// Frame is any frame as a receiver reads it: the fields of all types together.
type Frame struct {
	Type   string          `json:"type"`
	Ref    json.RawMessage `json:"ref,omitempty"`
	Cursor string          `json:"cursor,omitempty"`
	Since  string          `json:"since,omitempty"`
	Data   json.RawMessage `json:"data,omitempty"`
	To     json.RawMessage `json:"to,omitempty"`
}

// Skip says that no stored message up to To will come.
type Skip struct {
	Type   string `json:"type"`
	To     uint64 `json:"to"`
	Reason string `json:"reason"`
}

// Reasons of a Skip.
const (
	SkipExpired = "expired" // their own time was over
	SkipLimit   = "limit"   // they are not kept any more
)

// Ack, from a client: every stored message up to Cursor was handled.
type Ack struct {
	Type   string `json:"type"`
	Cursor string `json:"cursor"`
}

// Resume asks for a replay of what follows Since.
type Resume struct {
	Type  string `json:"type"`
	Since string `json:"since"`
}

// Resumed answers a resume.
type Resumed struct {
	Type  string `json:"type"`
	Since string `json:"since"`
	Head  uint64 `json:"head"`
	Gap   bool   `json:"gap"`
}

// Pong answers a ping; Ref is the ping's own, as it came.
type Pong struct {
	Type string          `json:"type"`
	Ref  json.RawMessage `json:"ref,omitempty"`
}

// ErrorFrame refuses a send.
type ErrorFrame struct {
	Type   string          `json:"type"`
	Ref    json.RawMessage `json:"ref,omitempty"`
	Code   Code            `json:"code"`
	Detail string          `json:"detail"`
}

// Move asks a client to dial another node first and to leave this one then.
type Move struct {
	Type       string `json:"type"`
	URL        string `json:"url"`
	Ticket     string `json:"ticket"`
	Node       string `json:"node"`
	Epoch      uint64 `json:"epoch"`
	Reason     string `json:"reason"`
	AfterMS    int64  `json:"after_ms"`
	DeadlineMS int64  `json:"deadline_ms"`
}

// ParseFrame reads a text frame of a client: one JSON object with a type.
func ParseFrame(b []byte) (Frame, error) {
	if cursor, ok := plainAck(b); ok {
		return Frame{Type: TypeAck, Cursor: cursor}, nil
	}
	var f Frame
	if err := DecodeJSON(b, &f); err != nil {
		return f, err
	}
	if f.Type == "" {
		return f, errors.New("a frame is a JSON object with a type")
	}
	return f, nil
}

// plainAck reads an ack in the spelling that encoders give it and with a cursor as
// nodes make them; any other is left to encoding/json. Acks are most of what clients
// send, and encoding/json grows the stack of each session's goroutine to read one,
// which the next garbage collection shrinks again: a tenth of a node's CPU time.
func plainAck(b []byte) (cursor string, ok bool) {
	b, ok = bytes.CutPrefix(b, []byte(`{"type":"ack","cursor":"`))
	if ok {
		b, ok = bytes.CutSuffix(b, []byte(`"}`))
	}
	if !ok {
		return "", false
	}
	for _, c := range b {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return "", false
		}
	}
	return string(b), true
}

// CheckRef reports why a frame's ref cannot be echoed: it is a string or a
// number of at most 128 bytes.
func CheckRef(ref json.RawMessage) error {
	if len(ref) > 128 {
		return fmt.Errorf("a ref has at most 128 bytes, this one has %d", len(ref))
	}
	if len(ref) > 0 && string(ref) != "null" && ref[0] != '"' && ref[0] != '-' && (ref[0] < '0' || ref[0] > '9') {
		return errors.New("a ref is a string or a number")
	}
	return nil
}

// AppendMessage appends the frame of a message to b. The stamp is the time as
// Stamp writes it; from is the user who sent it, or empty; seq is 0 if the message is not stored. data goes in as it is
// when it is JSON, else as base64; nothing is re-encoded.
func AppendMessage[S ~string | ~[]byte](b []byte, id S, stamp string, from S, seq uint64, cursor string, data []byte, isJSON bool) []byte {
	b = append(b, `{"type":"message","id":"`...)
	b = append(b, id...)
	b = append(b, `","time":"`...)
	b = append(b, stamp...)
	if len(from) > 0 {
		b = append(b, `","from":`...)
		b = AppendString(b, string(from))
		b = b[:len(b)-1] // the quote that what follows begins with
	}
	if seq > 0 {
		b = append(b, `","seq":`...)
		b = strconv.AppendUint(b, seq, 10)
		b = append(b, `,"cursor":"`...)
		b = append(b, cursor...)
	}
	if isJSON {
		b = append(b, `","data":`...)
		b = append(b, data...)
		return append(b, '}')
	}
	b = append(b, `","data_b64":"`...)
	b = base64.StdEncoding.AppendEncode(b, data)
	return append(b, '"', '}')
}

// Stamp formats a time as frames carry it: UTC, to the millisecond.
func Stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }

// AppendPushResult appends r as JSON to b. It is on the path of every push,
// where encoding/json costs more than the rest of the answer.
func AppendPushResult(b []byte, r *PushResult) []byte {
	b = append(b, '{')
	if r.User != "" {
		b = append(b, `"user":`...)
		b = AppendString(b, r.User)
		b = append(b, ',')
	}
	b = append(b, `"id":`...)
	b = AppendString(b, r.ID)
	if r.Seq > 0 {
		b = append(b, `,"seq":`...)
		b = strconv.AppendUint(b, r.Seq, 10)
	}
	b = append(b, `,"stored":`...)
	b = strconv.AppendBool(b, r.Stored)
	b = append(b, `,"duplicate":`...)
	b = strconv.AppendBool(b, r.Duplicate)
	b = append(b, `,"delivered":`...)
	b = strconv.AppendInt(b, int64(r.Delivered), 10)
	b = append(b, `,"acked":`...)
	b = strconv.AppendInt(b, int64(r.Acked), 10)
	b = append(b, `,"node":`...)
	b = AppendString(b, r.Node)
	b = append(b, `,"epoch":`...)
	b = strconv.AppendUint(b, r.Epoch, 10)
	return append(b, '}')
}

// AppendString appends s as a JSON string, escaping no more than JSON demands:
// a ticket must hold the longest user id. s must be valid UTF-8.
func AppendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

const hexDigits = "0123456789abcdef"
