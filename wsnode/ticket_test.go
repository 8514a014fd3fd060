package wsnode

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/metric"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// oneKey is a book of one key.
type oneKey struct{ s *ticket.Signer }

func (o oneKey) Key(kid string) (ed25519.PublicKey, string) {
	if kid != o.s.KID {
		return nil, ""
	}
	return o.s.Public, ticket.FromLocator + "1"
}
func (oneKey) Skew(string) time.Duration { return 0 }

// A node that remembers as many used tickets as it can answers 503, since it cannot tell
// whether one was used; the stranger is told no more than that, and the log why.
func TestTicketMemoryFull(t *testing.T) {
	var log strings.Builder
	n, err := New(Config{Dev: "true", NodeID: "ws-1", Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s := ticket.NewSigner()
	n.verifier = ticket.NewVerifier("ws-1", oneKey{s}, 1)
	n.metrics = &metrics{tickets: metric.Counters("tickets", "Tickets.", "reason"), limited: metric.Counters("limited", "Limits.", "limit")}
	n.maxSessions = 1
	sign := func() string { return s.Ticket(ticket.Ticket{User: "alice", Device: "web", Node: "ws-1"}, time.Now()) }
	if _, err := n.verifier.Ticket(sign(), time.Now()); err != nil { // the one that it remembers
		t.Fatal(err)
	}
	for range 2 {
		token := sign()
		r := httptest.NewRequest("GET", "/v1/ws", nil)
		for name, v := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
			"Sec-WebSocket-Protocol": wire.Subprotocol + ", " + wire.TicketSubprotocol + token} {
			r.Header.Set(name, v)
		}
		p, session := n.admit(r)
		if p == nil || session != nil || p.Status != 503 || p.RetryAfter == 0 {
			t.Fatalf("%+v", p)
		}
		if strings.Contains(log.String(), token) || !strings.Contains(log.String(), "event=ticket_refused reason=full") || !strings.Contains(log.String(), "user=alice kid="+s.KID) {
			t.Errorf("the log: %s", &log)
		}
	}
}

// Each fault of a ticket has its status, its reason, and a text without either.
func TestTicketRefusals(t *testing.T) {
	for _, c := range []struct {
		err    error
		reason string
		status int
	}{
		{ticket.ErrInvalid, ticketInvalid, 401}, {ticket.ErrUnknownKey, ticketKey, 401}, {ticket.ErrAudience, ticketAudience, 401}, {ticket.ErrExpired, ticketExpired, 401},
		{ticket.ErrUsed, ticketUsed, 401}, {ticket.ErrFull, ticketFull, 503}, {errors.New("another"), ticketInvalid, 401},
	} {
		err := fmt.Errorf("%w: kid 42 of ws-7", c.err)
		if p := ticketProblem(err); p.Status != c.status || strings.Contains(p.Detail, "42") || strings.Contains(p.Detail, "ws-7") {
			t.Errorf("%v is answered with %+v", err, p)
		}
		if r := reasonOf(err); r != c.reason {
			t.Errorf("%v counts as %s", err, r)
		}
	}
}
