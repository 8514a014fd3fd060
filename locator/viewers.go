package locator

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/wire"
)

// viewers are the pages that look at the board, each over a stream of server-sent
// events: the board whole at first, and then what changed, encoded once for all.
//
//	asks --too many--> refused
//	  \--> sees the whole board --> sees changes --does not take them--> dropped
//	                                     \--leaves, or its login ends--> gone
//
// A page that was dropped comes again by itself, and begins anew.
type viewers struct {
	source interface {
		look() board
		watch()
	}
	ended <-chan struct{} // no more requests are taken

	mu   sync.Mutex
	last board
	seen bool // there is a last one
	all  map[*viewer]struct{}
}

type viewer struct {
	frames chan []byte // closed when it is dropped
}

const (
	boardEvery    = 500 * time.Millisecond
	aliveEvery    = 5 * time.Second // so that a page knows that it is live, though nothing changes
	maxViewers    = 32
	viewerFrames  = 16 // that may wait for a viewer
	viewerTimeout = 10 * time.Second
)

// run looks at the board twice a second, as long as others do, until ctx ends.
func (v *viewers) run(ctx context.Context) {
	t := time.NewTicker(boardEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			v.tick()
		}
	}
}

func (v *viewers) tick() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.all) == 0 {
		v.source.watch()
		return
	}
	v.lookLocked()
}

// lookLocked looks at the board and tells the viewers what changed.
func (v *viewers) lookLocked() {
	now := v.source.look()
	old, seen := v.last, v.seen
	v.last, v.seen = now, true
	if !seen || len(v.all) == 0 {
		return
	}
	change, any := now.since(&old)
	if !any {
		return
	}
	f := event("change", change)
	for x := range v.all {
		select {
		case x.frames <- f:
		default:
			delete(v.all, x)
			close(x.frames)
		}
	}
}

// join adds a viewer, whose first frame is the whole board; nil: there are too many.
func (v *viewers) join() *viewer {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.all) >= maxViewers {
		return nil
	}
	v.lookLocked() // the changes that follow are those since then
	x := &viewer{frames: make(chan []byte, viewerFrames)}
	x.frames <- event("whole", v.last)
	if v.all == nil {
		v.all = map[*viewer]struct{}{}
	}
	v.all[x] = struct{}{}
	return x
}

func (v *viewers) leave(x *viewer) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.all, x)
}

// event is a server-sent event.
func event(name string, data any) []byte {
	b, err := json.Marshal(data)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	f := make([]byte, 0, len(b)+32)
	f = append(append(append(f, "event: "...), name...), "\ndata: "...)
	return append(append(f, b...), "\n\n"...)
}

// state: GET /admin/v1/state, the whole board once.
func (v *viewers) state(c echo.Context) error {
	v.mu.Lock()
	v.lookLocked()
	b := v.last
	v.mu.Unlock()
	return writeJSON(c, http.StatusOK, b)
}

// me: GET /admin/v1/me says who asks, and whether no more viewers can be: browsers do not
// tell a page why a stream was refused.
func (v *viewers) me(c echo.Context) error {
	v.mu.Lock()
	full := len(v.all) >= maxViewers
	v.mu.Unlock()
	return writeJSON(c, http.StatusOK, map[string]any{"who": httpd.AdminCallerOf(c.Request().Context()).Who, "full": full})
}

// events: GET /admin/v1/events
func (v *viewers) events(c echo.Context) error {
	x := v.join()
	if x == nil {
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "%d pages look at this dashboard already; close one, or look at another locator's", maxViewers)
	}
	defer v.leave(x)
	caller := httpd.AdminCallerOf(c.Request().Context())
	w := c.Response()
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // the server's is for requests that end
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold the events back
	w.WriteHeader(http.StatusOK)
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	for {
		var f []byte
		select {
		case f = <-x.frames:
			if f == nil {
				return nil // it was dropped
			}
		case now := <-alive.C:
			if !caller.Valid() {
				return nil
			}
			f = event("alive", map[string]time.Time{"now": now.UTC()})
		case <-c.Request().Context().Done():
			return nil
		case <-v.ended:
			return nil
		}
		_ = rc.SetWriteDeadline(time.Now().Add(viewerTimeout))
		if _, err := w.Write(f); err != nil {
			return nil
		}
		if err := rc.Flush(); err != nil {
			return nil
		}
	}
}
