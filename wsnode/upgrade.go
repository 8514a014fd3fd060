package wsnode

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/wire"
)

// checkUpgrade checks what RFC 6455, section 4.2.1, asks of a handshake.
func checkUpgrade(r *http.Request) *wire.Problem {
	bad := func(detail string) *wire.Problem {
		return wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "not a WebSocket handshake: %s", detail)
	}
	switch {
	case r.ProtoMajor != 1 || !r.ProtoAtLeast(1, 1):
		return bad("it must be HTTP/1.1")
	case !hasToken(r.Header["Connection"], "upgrade"):
		return bad("the header Connection must contain Upgrade")
	case !hasToken(r.Header["Upgrade"], "websocket"):
		return bad("the header Upgrade must be websocket")
	case r.Host == "":
		return bad("the header Host must name this server")
	case r.ContentLength > 0 || len(r.TransferEncoding) > 0:
		return bad("it must not have a body")
	}
	if v := r.Header["Sec-Websocket-Version"]; len(v) != 1 || v[0] != "13" {
		p := wire.NewProblem(http.StatusUpgradeRequired, wire.CodeInvalidRequest, "the header Sec-WebSocket-Version must be 13")
		p.Header = [2]string{"Sec-WebSocket-Version", "13"}
		return p
	}
	key := r.Header["Sec-Websocket-Key"]
	if len(key) != 1 {
		return bad("there must be one header Sec-WebSocket-Key")
	}
	if k, err := base64.StdEncoding.DecodeString(key[0]); err != nil || len(k) != 16 {
		return bad("Sec-WebSocket-Key must be 16 bytes in base64")
	}
	return nil
}

// hasToken tells whether a comma list, perhaps over several headers, has token.
func hasToken(values []string, token string) bool {
	for t := range tokens(values) {
		if strings.EqualFold(t, token) {
			return true
		}
	}
	return false
}

func tokens(values []string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, v := range values {
			for t := range strings.SplitSeq(v, ",") {
				if !yield(strings.TrimSpace(t)) {
					return
				}
			}
		}
	}
}

// offered takes the ticket from the subprotocols or the Authorization header.
func offered(r *http.Request) (string, *wire.Problem) {
	ours := false
	var tickets []string
	for t := range tokens(r.Header["Sec-Websocket-Protocol"]) {
		if t == wire.Subprotocol {
			ours = true
		} else if x, ok := strings.CutPrefix(t, wire.TicketSubprotocol); ok {
			tickets = append(tickets, x)
		}
	}
	if !ours {
		return "", wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "the header Sec-WebSocket-Protocol must offer %s", wire.Subprotocol)
	}
	if x, ok := httpd.Bearer(r); ok {
		tickets = append(tickets, x)
	}
	switch len(tickets) {
	case 0:
		return "", nil
	case 1:
		return tickets[0], nil
	}
	return "", wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "send one ticket, either as a subprotocol or as a bearer token")
}

func sinceOf(r *http.Request) (string, *wire.Problem) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "the query cannot be read: it is not validly percent-encoded")
	}
	since := q.Get("since")
	if since == "" {
		return "", nil
	}
	if err := wire.CheckCursor(since); err != nil {
		return "", wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "since: %v", err)
	}
	return since, nil
}
