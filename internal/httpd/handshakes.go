package httpd

import (
	"context"
	"errors"
	"log/slog"
	"strings"
)

// Handshakes is log for Serve, with failed TLS handshakes told to refused instead, which must
// not block. net/http tells of them in its log only. Who closes without a word, as whoever
// looks whether a port is open, is not told of.
func Handshakes(log *slog.Logger, refused func(remote string, why error)) *slog.Logger {
	return slog.New(&handshakes{log.Handler(), refused})
}

type handshakes struct {
	slog.Handler
	refused func(remote string, why error)
}

// handshakeLine is how net/http begins what it says of one; the address and a colon follow.
const handshakeLine = "http: TLS handshake error from "

// Enabled is for every level: net/http's lines are debug.
func (h *handshakes) Enabled(context.Context, slog.Level) bool { return true }

func (h *handshakes) Handle(ctx context.Context, r slog.Record) error {
	if rest, ok := strings.CutPrefix(r.Message, handshakeLine); ok {
		remote, why, _ := strings.Cut(rest, ": ")
		if why = strings.TrimSpace(why); why != "EOF" {
			h.refused(remote, errors.New(why))
		}
		return nil
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}
