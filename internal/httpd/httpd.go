// Package httpd is what the programs' HTTP listeners share: echo with the
// contract's problem documents, servers with time limits and a clean end, the
// limit for each address, the origins of browsers, and the admin listener.
package httpd

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/wire"
)

// Limits of every listener.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 30 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 16 << 10
	shutdownTimeout   = 5 * time.Second
)

// New makes an echo whose errors are problem documents and whose panics are
// logged and answered with 500.
func New(log *slog.Logger) *echo.Echo {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.IPExtractor = echo.ExtractIPDirect() // forwarded headers are anyone's to write
	e.HTTPErrorHandler = func(err error, c echo.Context) {
		if c.Response().Committed {
			return
		}
		p := problemOf(err)
		if p.Status == http.StatusInternalServerError {
			log.Error("request failed", "event", "internal", "path", c.Path(), "error", err)
		}
		WriteProblem(c.Response(), p)
	}
	e.Use(plain, recoverer(log))
	return e
}

var ( // net/http only reads them
	noSniff = []string{"nosniff"}
	noStore = []string{"no-store"}
)

// plain sets the headers of every answer: no browser guesses what it is, and nobody keeps it, since
// it is mostly a ticket or about a user. There is no HSTS, also where the program has a certificate:
// it would speak for all ports of the name, which is the business of whoever owns that (the admin
// listener is one of them, without TLS), and no page is served here that one could be led to by http.
func plain(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		h := c.Response().Header()
		h["X-Content-Type-Options"], h["Cache-Control"] = noSniff, noStore
		return next(c)
	}
}

// problemOf turns an error of a handler or of echo into what the caller is told.
func problemOf(err error) *wire.Problem {
	var p *wire.Problem
	if errors.As(err, &p) {
		return p
	}
	var tooBig *http.MaxBytesError
	if errors.As(err, &tooBig) {
		return wire.NewProblem(http.StatusRequestEntityTooLarge, wire.CodeTooLarge, "the body has more than %d bytes", tooBig.Limit)
	}
	var he *echo.HTTPError
	if errors.As(err, &he) {
		switch he.Code {
		case http.StatusNotFound:
			return wire.NewProblem(he.Code, wire.CodeNotFound, "there is nothing at this path; the API is under /v1")
		case http.StatusMethodNotAllowed:
			return wire.NewProblem(he.Code, wire.CodeMethodNotAllowed, "this path does not take that method; see the Allow header")
		}
	}
	return wire.NewProblem(http.StatusInternalServerError, wire.CodeInternal, "something went wrong here; the log of the server says more")
}

// WriteProblem answers with a problem document.
func WriteProblem(w http.ResponseWriter, p *wire.Problem) {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	h := w.Header()
	h.Set("Content-Type", wire.ProblemType)
	h.Set("Content-Length", strconv.Itoa(len(b)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if p.Header[0] != "" {
		h.Set(p.Header[0], p.Header[1])
	}
	if p.Status == http.StatusUpgradeRequired { // RFC 9110, 15.5.22 and 7.8
		h.Set("Upgrade", "websocket")
		h.Set("Connection", "Upgrade")
	}
	hurry(w)
	w.WriteHeader(p.Status)
	_, _ = w.Write(b)
}

// unreadTimeout is how long net/http waits for a body, or the rest of one, that nobody wants:
// it reads up to 256 KiB of it before it sends an answer.
const unreadTimeout = 2 * time.Second

// maxUnread is how much it reads.
const maxUnread = 256 << 10

// hurry keeps who announces a body, and does not send it, from having a connection for as
// long as a body may take.
func hurry(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(unreadTimeout)) // net/http sets it anew for the next request
}

// hurried is for requests that have no reason to have a body, or only a small one.
func hurried(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 && (r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions) {
			hurry(w)
		}
		if !r.Close || r.ContentLength == 0 {
			next.ServeHTTP(w, r)
			return
		}
		b := &countedBody{ReadCloser: r.Body, left: r.ContentLength}
		r.Body = b
		next.ServeHTTP(w, r)
		if !b.done {
			b.answered(w)
		}
	})
}

// countedBody is the body of a request with which its connection ends. Of such a one net/http
// reads nothing that the handler did not, and closes: who still sends it gets a reset in place
// of the answer that it is too large, or that the key is wrong.
type countedBody struct {
	io.ReadCloser
	left int64 // of the length that was announced; below 0: none was
	done bool
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left == 0 || err == io.EOF {
		b.done = true
	}
	return n, err
}

// answered reads as much of it as net/http does of any other, behind the answer. Of what is
// longer, or does not come, net/http ends its own direction, and the other one a moment later.
func (b *countedBody) answered(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush()
	hurry(w)
	_, _ = io.CopyN(io.Discard, b, maxUnread)
	if !b.done {
		_, _ = http.MaxBytesReader(w, io.NopCloser(strings.NewReader("x")), 0).Read(make([]byte, 1))
	}
}

// recoverer keeps a panic of a handler from ending the connection without an
// answer. echo's own prints the request, which may hold secrets.
func recoverer(log *slog.Logger) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) (err error) {
			defer func() {
				if r := recover(); r != nil {
					if r == http.ErrAbortHandler {
						panic(r)
					}
					log.Error("panic in a handler", "event", "panic", "path", c.Path(), "panic", r, "stack", string(debug.Stack()))
					err = wire.NewProblem(http.StatusInternalServerError, wire.CodeInternal, "something went wrong here; the log of the server says more")
				}
			}()
			return next(c)
		}
	}
}

// Serve serves h on l until ctx ends, then waits for requests under way.
// Connections that a handler hijacked are the handler's own business. tune changes the
// server before it starts.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger, tune ...func(*http.Server)) error {
	s := &http.Server{
		Handler:           hurried(h),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       rawConn,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // mostly strangers' broken requests
	}
	for _, f := range tune {
		f(s)
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			_ = s.Close()
		}
	})
	err := s.Serve(l)
	if !stop() { // it was the context that ended it
		<-ended
		return nil
	}
	return err
}
