package locator

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

//go:embed dashboard
var dashboardFiles embed.FS

// dashboardPolicy lets the page load its own files, talk to its own server, and nothing
// else; text never becomes markup.
const dashboardPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'none'; " +
	"base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// adminHandler is what the admin listener serves: the dashboard beside health, metrics
// and profiles. Who may get there is httpd's business.
func (l *Locator) adminHandler(addr net.Addr) http.Handler {
	return httpd.Admin(httpd.AdminOptions{Addr: addr, Key: string(l.cfg.AdminKey), Ready: l.ready, Metrics: l.metrics.registry, Log: l.log,
		Pages: dashboardPages(), API: l.dashboardAPI()})
}

// dashboardAPI is what the page asks for.
func (l *Locator) dashboardAPI() http.Handler {
	e := httpd.New(l.log)
	e.Use(operated)
	e.GET(httpd.AdminAPI+"me", l.viewers.me)
	e.GET(httpd.AdminAPI+"state", l.viewers.state)
	e.GET(httpd.AdminAPI+"events", l.viewers.events)
	e.GET(httpd.AdminAPI+"users/*", l.lookup, l.started)
	e.POST(httpd.AdminAPI+"users/*", l.adminPush, l.started)
	e.DELETE(httpd.AdminAPI+"users/*", l.adminKick, l.started)
	e.POST(httpd.AdminAPI+"plan", l.plan, l.started)
	e.POST(httpd.AdminAPI+"nodes/:node/drain", l.adminDrain, l.started)
	return e
}

func dashboardPages() http.Handler {
	files, err := fs.Sub(dashboardFiles, "dashboard")
	if err != nil {
		panic(err) // the folder is part of the program
	}
	serve := http.FileServerFS(files)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", dashboardPolicy)
		name := strings.TrimPrefix(r.URL.Path, "/")
		if !there(files, cmp.Or(name, ".")) { // net/http's own answer takes headers away
			http.Error(w, "there is no such page here", http.StatusNotFound)
			return
		}
		serve.ServeHTTP(w, r)
	})
}

func there(files fs.FS, name string) bool {
	_, err := fs.Stat(files, name)
	return err == nil
}

// adminUsers is where users are in the API. A user follows behind a =, so that no id is a
// path segment with a meaning of its own, as . and .. have.
const adminUsers = httpd.AdminAPI + "users/="

// adminUser takes the user out of a path.
func adminUser(c echo.Context, suffix string) (string, error) {
	user, err := wire.PathUser(c.Request().URL, adminUsers, suffix)
	if err != nil {
		return "", badRequest("%v", err)
	}
	return user, nil
}

// lookup: GET /admin/v1/users/={user}, all that is known of a user.
func (l *Locator) lookup(c echo.Context) error {
	user, err := adminUser(c, "")
	if err != nil {
		return err
	}
	query, err := json.Marshal(peer.UserQuery{Events: true})
	if err != nil {
		return err
	}
	res, owner, p := l.userNow(user, query)
	if p != nil {
		return p
	}
	out := userShown{UserResponse: res, Now: time.Now().UTC(), Events: owner.Events, Forgotten: owner.Forgotten, Silent: []string{}}
	cur := l.rings.Current()
	if n, ok := cur.NextOwner(user); ok {
		out.NextOwner = n.ID
	}
	l.eventsElsewhere(c.Request().Context(), cur, user, query, &out)
	slices.SortStableFunc(out.Events, func(a, b peer.Event) int { return a.Time.Compare(b.Time) })
	over := max(0, len(out.Events)-maxEventsShown)
	out.Events, out.Forgotten = append([]peer.Event{}, out.Events[over:]...), out.Forgotten || over > 0
	return writeJSON(c, http.StatusOK, out)
}

// userShown is the answer to a look-up.
type userShown struct {
	wire.UserResponse
	NextOwner string       `json:"next_owner,omitempty"` // who would own the user if its owner left
	Now       time.Time    `json:"now"`
	Events    []peer.Event `json:"events"`           // oldest first
	Forgotten bool         `json:"events_forgotten"` // there may have been others before
	Silent    []string     `json:"silent"`           // nodes that did not say what they know
}

const (
	maxEventsShown = 100
	// eventsTimeout is how long a look-up waits for what other nodes remember.
	eventsTimeout = time.Second
)

// eventsElsewhere asks the nodes that do not own a user what happened to the user there:
// before a move it was another one's.
func (l *Locator) eventsElsewhere(ctx context.Context, cur *ring.Ring, user string, query []byte, out *userShown) {
	ctx, cancel := context.WithTimeout(ctx, eventsTimeout)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, n := range slices.Concat(cur.Nodes, cur.Leaving) {
		if n.ID == out.Node {
			continue
		}
		wg.Go(func() {
			r, err := l.router.call(ctx, &n, &peer.Call{Op: peer.OpSessions, Ring: cur.Ref(), User: user, Forwarded: true, JSON: true, Body: query})
			var u peer.User
			if err == nil {
				err = json.Unmarshal(r.Body, &u)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				out.Silent = append(out.Silent, n.ID)
			}
			out.Events, out.Forgotten = append(out.Events, u.Events...), out.Forgotten || u.Forgotten
		})
	}
	wg.Wait()
	slices.Sort(out.Silent)
}

// adminPush: POST /admin/v1/users/={user}/push, as POST /v1/push/{user}.
func (l *Locator) adminPush(c echo.Context) error {
	return l.adminAct(c, actPush, "/push", l.pushTo)
}

// adminKick: DELETE /admin/v1/users/={user}/sessions, as DELETE /v1/users/{user}/sessions.
func (l *Locator) adminKick(c echo.Context) error {
	return l.adminAct(c, actKick, "/sessions", l.kickUser)
}

// adminAct does something to the user of a path; the audit has the path where that names none.
func (l *Locator) adminAct(c echo.Context, act, suffix string, do func(c echo.Context, user string) error) error {
	user, err := adminUser(c, suffix)
	if err != nil {
		return l.act(c, act, c.Request().URL.Path, func() error { return err })
	}
	return l.act(c, act, user, func() error { return do(c, user) })
}

// adminDrain: POST /admin/v1/nodes/{node}/drain, as POST /v1/nodes/{node}/drain.
func (l *Locator) adminDrain(c echo.Context) error {
	return l.act(c, actDrain, c.Param("node"), func() error { return l.drain(c) })
}
