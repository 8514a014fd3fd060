// Package httpd is what the programs' HTTP listeners share: echo with the
// contract's problem documents, servers with time limits and a clean end, the
// limit for each address, the origins of browsers, and the admin listener.
package httpd

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
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
	e.Use(recoverer(log))
	return e
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
	w.WriteHeader(p.Status)
	_, _ = w.Write(b)
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
// Connections that a handler hijacked are the handler's own business.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // mostly strangers' broken requests
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
