// Package jsapi reads answers of JetStream's API for which nats.go has no call: it asks for
// single messages of streams that allow it by direct gets, which followers answer too, and
// which tell a position in a header that the writer of a message may have set.
package jsapi

import (
	"encoding/json"
	"errors"
	"fmt"
)

// MsgGet begins the subject of a request for one message, which the leader of the stream
// answers; the stream's name ends it.
const MsgGet = "$JS.API.STREAM.MSG.GET."

// Codes of errors.
const (
	CodeNoStream  = 10059
	CodeNoMessage = 10037
)

// Error is JetStream's.
type Error struct {
	Code        int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *Error) Error() string { return fmt.Sprintf("JetStream: %s (%d)", e.Description, e.Code) }

// Is tells whether an error is JetStream's with this code.
func Is(err error, code int) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// ErrNothing is an answer with neither a message nor an error.
var ErrNothing = errors.New("JetStream answers without a message")

// Message is a message as a stream has it.
type Message struct {
	Seq  uint64 `json:"seq"`
	Hdrs []byte `json:"hdrs"`
	Data []byte `json:"data"`
}

// ParseMsgGet reads the answer to a request for one message.
func ParseMsgGet(answer []byte) (*Message, error) {
	var got struct {
		Message *Message `json:"message"`
		Error   *Error   `json:"error"`
	}
	switch err := json.Unmarshal(answer, &got); {
	case err != nil:
		return nil, fmt.Errorf("the answer of JetStream cannot be read: %w", err)
	case got.Error != nil:
		return nil, got.Error
	case got.Message == nil:
		return nil, ErrNothing
	}
	return got.Message, nil
}
