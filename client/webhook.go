package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// Sent is what a client sent to the application, with Client.Request or a frame send
// that names no user.
type Sent struct {
	ID      string // the same when it comes again
	User    string // by the user's token
	Device  string
	Session string
	Node    string    // that the client is connected to
	Time    time.Time // by that node's clock
	Data    json.RawMessage
}

// ParseSent reads the body of a webhook, or of a message on the NATS subject
// <cluster>.app or in the stream <cluster>_app.
//
// On the subject, subscribe as a queue group and answer with JSON, or refuse with the
// header Dialring-Error.
func ParseSent(b []byte) (Sent, error) {
	var m wire.AppMessage
	if err := json.Unmarshal(b, &m); err != nil || m.ID == "" || m.User == "" {
		return Sent{}, errors.New("dialring: this is no message of a client")
	}
	return Sent(m), nil
}

// RefusedError is what a WebhookFunc returns to refuse a message for good; the client is
// told Detail. Any other error is answered 500, and the node tries again for a while.
type RefusedError struct{ Detail string }

func (e *RefusedError) Error() string { return e.Detail }

// WebhookFunc handles a message of a client. What it returns, if not nil, is marshalled to JSON and
// goes back to the client. A message may come again, with the same ID.
type WebhookFunc func(ctx context.Context, m Sent) (any, error)

const (
	maxWebhook       = 4 << 20
	webhookTolerance = 5 * time.Minute
)

// Webhook is an http.Handler for DIALRING_APP: it checks that what comes was signed with
// secret (DIALRING_APP_SECRET, at least 32 bytes; with less it answers 500) in the last five minutes, and has f handle it.
func Webhook(secret string, f WebhookFunc) http.Handler {
	if len(secret) < wire.MinWebhookSecret { // else anybody could be any user
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, fmt.Sprintf("the secret of this webhook has %d bytes; it needs %d", len(secret), wire.MinWebhookSecret), http.StatusInternalServerError)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "a webhook is a POST", http.StatusMethodNotAllowed)
			return
		}
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWebhook))
		if err != nil {
			http.Error(w, "the body cannot be read", http.StatusBadRequest)
			return
		}
		if err := wire.CheckWebhook([]byte(secret), r.Header.Get(wire.HeaderSignature), b, time.Now(), webhookTolerance); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		m, err := ParseSent(b)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := f(r.Context(), m)
		if refused := (*RefusedError)(nil); errors.As(err, &refused) {
			w.Header().Set("Content-Type", wire.ProblemType)
			w.WriteHeader(http.StatusUnprocessableEntity)
			_ = json.NewEncoder(w).Encode(map[string]any{"status": http.StatusUnprocessableEntity, "detail": refused.Detail})
			return
		}
		if err != nil {
			http.Error(w, "the application failed", http.StatusInternalServerError)
			return
		}
		if out == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		answer, err := json.Marshal(out)
		if err != nil {
			http.Error(w, "the answer has no JSON", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	})
}
