package locator

import (
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/wire"
)

// Limits as the metric dialring_limited_total names them.
const (
	limitAddress            = "address"             // RATE_PER_ADDRESS
	limitUser               = "user"                // RATE_PER_USER
	limitKey                = "key"                 // CALLS_PER_KEY
	limitBodies             = "bodies"              // CALL_BYTES
	limitEdge               = "edge"                // relayed connections
	limitConnections        = "connections"         // MAX_CONNECTIONS, open files
	limitAddressConnections = "address_connections" // RATE_PER_ADDRESS
	limitAdmin              = "admin"               // connections of the admin listener
	limitOverload           = "overload"            // more locates than can be answered in time
	limitBody               = "body"                // MAX_MESSAGE_BYTES, MAX_BODY_BYTES and what else a body may have
	limitBatch              = "batch"               // MAX_BATCH
	limitMembers            = "members"             // of a group
)

var allLimits = []string{limitAddress, limitUser, limitKey, limitBodies, limitEdge, limitConnections, limitAddressConnections, limitAdmin, limitOverload, limitBody, limitBatch, limitMembers}

const (
	// maxLocates may be under way: most take no time, but those for a node that is doubted,
	// or whose token names a key that has to be fetched, wait.
	maxLocates = 10_000
	// A key with no more than fewBytes under way is let in when the others have all of CALL_BYTES;
	// a quarter of that is kept for such ones.
	fewBytes = 1 << 20
)

// maxAdmin bounds the connections of the admin listener, for the same reason as
// MAX_CONNECTIONS those of the other one.
const maxAdmin = 256

// connections shares out the descriptors that are there for clients: to connections that ask
// and are answered, and with the edge to pairs of them.
func connections(setting int, edge bool, files int64) (most, pairs int) {
	if !edge {
		return int(min(int64(setting), files)), 0
	}
	most = int(max(1, min(int64(setting), files/4)))
	return most, int(max(1, files-int64(most))) / 2
}

// limited counts what was refused for a limit.
func (l *Locator) limited(limit string) { l.metrics.limited.WithLabelValues(limit).Inc() }

// admitted lets in as many locates as can be answered in time. It stands before all work, that
// on tokens above all, and concerns locates only: health, metrics and services have the
// time that it leaves.
func (l *Locator) admitted(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if p := l.limiter.Check(c.Request()); p != nil { // first: what one address has too many of is no overload
			l.limited(limitAddress)
			return l.toOrigin(c, p)
		}
		if !l.locates.Enter(c.Request()) {
			l.limited(limitOverload)
			l.locates.Hold(c.Request().Context())
			return l.toOrigin(c, httpd.Busy("more locates come here than can be answered in time; locate again later, or at another locator"))
		}
		defer l.locates.Leave()
		return next(c)
	}
}

// toOrigin lets pages see why they are refused, if they may locate at all.
func (l *Locator) toOrigin(c echo.Context, p *wire.Problem) *wire.Problem {
	l.origins.CORS(c.Response().Header(), c.Request())
	return p
}

// readBody reads a body of at most limit bytes.
func (l *Locator) readBody(r *http.Request, limit int) ([]byte, *wire.Problem) {
	b, p := httpd.ReadBody(r, limit)
	if p != nil && p.Status == http.StatusRequestEntityTooLarge {
		l.limited(limitBody)
	}
	return b, p
}

// readJSON reads one that has to be JSON.
func (l *Locator) readJSON(r *http.Request, limit int) ([]byte, *wire.Problem) {
	isJSON, p := isJSONBody(r)
	if p == nil && !isJSON {
		p = wire.NewProblem(http.StatusUnsupportedMediaType, wire.CodeInvalidRequest, "this call takes JSON: send Content-Type: application/json")
	}
	if p != nil {
		return nil, p
	}
	return l.readBody(r, limit)
}

// checkBatch judges how many users a call has.
func (l *Locator) checkBatch(n int) *wire.Problem {
	if n <= l.cfg.MaxBatch {
		return nil
	}
	l.limited(limitBatch)
	return badRequest("the call names %d users; at most %d are allowed (DIALRING_MAX_BATCH of the locator)", n, l.cfg.MaxBatch)
}

// bodySize is as how many bytes a call's body counts while the call is under way.
func (l *Locator) bodySize(r *http.Request) int64 {
	most := int64(max(l.cfg.MaxBodyBytes, l.cfg.MaxMessageBytes+broadcastEnvelope))
	switch {
	case r.URL.Path == "/v1/push" && isStream(r):
		return streamSize
	case r.ContentLength >= 0 && r.ContentLength <= most: // what is longer is refused unread
		return r.ContentLength
	case strings.HasPrefix(r.URL.Path, "/v1/push/"):
		return int64(l.cfg.MaxMessageBytes)
	}
	return most
}

// streamSize is as how much a stream counts: it may have four times as much under way,
// and nearly always has much less.
const streamSize = callWindow / 4
