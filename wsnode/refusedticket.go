package wsnode

import (
	"errors"
	"net/http"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// Why a ticket is refused, as a metric and the log name it.
const (
	ticketMissing  = "missing"
	ticketInvalid  = "invalid"     // forged, or none at all
	ticketKey      = "unknown_key" // signed by a process that this cluster does not know
	ticketAudience = "audience"    // for another node
	ticketExpired  = "expired"
	ticketUsed     = "used"   // before
	ticketFull     = "full"   // too many are remembered as used
	ticketKicked   = "kicked" // it is of before the user was kicked
)

var ticketReasons = []string{ticketMissing, ticketInvalid, ticketKey, ticketAudience, ticketExpired, ticketUsed, ticketFull, ticketKicked}

func reasonOf(err error) string {
	for _, r := range []struct {
		err    error
		reason string
	}{{ticket.ErrUnknownKey, ticketKey}, {ticket.ErrAudience, ticketAudience}, {ticket.ErrExpired, ticketExpired}, {ticket.ErrUsed, ticketUsed}, {ticket.ErrFull, ticketFull}} {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return ticketInvalid
}

// refusedTicket counts a refusal, and tells the log what the stranger is not told. user is
// whose ticket it is; "" unless its signature is good.
func (n *Node) refusedTicket(r *http.Request, reason, token, user string) {
	n.metrics.tickets.WithLabelValues(reason).Inc()
	if skipped, say := n.refusals.Next(reason); say {
		n.log.Info("a ticket is refused", "event", "ticket_refused", "reason", reason, "remote", r.RemoteAddr, "user", httpd.Cut(user),
			"kid", httpd.Cut(ticket.KeyIDOf(token)), "skipped", skipped)
	}
}

// ticketProblem says no more than a stranger may know.
func ticketProblem(err error) *wire.Problem {
	detail := "the ticket is not valid"
	switch {
	case errors.Is(err, ticket.ErrFull):
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "too many tickets were used lately; locate again")
	case errors.Is(err, ticket.ErrExpired):
		detail = "the ticket has expired"
	case errors.Is(err, ticket.ErrUsed):
		detail = "the ticket was used before; each is good once"
	case errors.Is(err, ticket.ErrAudience):
		detail = "the ticket is for another node"
	}
	return wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "%s: locate again", detail)
}
