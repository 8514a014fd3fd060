package httpd

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

const (
	adminSession     = 12 * time.Hour
	maxAdminSessions = 256 // then the one that ends first goes
	maxLoginBody     = 4 << 10
)

// adminSessions are the logins of operators. They end with the process.
type adminSessions struct {
	cookie string // its name

	mu  sync.Mutex
	end map[[sha256.Size]byte]time.Time // by the digest of its token
}

func (s *adminSessions) open(now time.Time) (token string) {
	token = rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end == nil {
		s.end = map[[sha256.Size]byte]time.Time{}
	}
	var first [sha256.Size]byte
	for d, end := range s.end {
		if !now.Before(end) {
			delete(s.end, d)
		} else if s.end[first].IsZero() || end.Before(s.end[first]) {
			first = d
		}
	}
	if len(s.end) >= maxAdminSessions {
		delete(s.end, first)
	}
	s.end[sha256.Sum256([]byte(token))] = now.Add(adminSession)
	return token
}

func (s *adminSessions) has(token string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return token != "" && now.Before(s.end[sha256.Sum256([]byte(token))])
}

func (s *adminSessions) close(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.end, sha256.Sum256([]byte(token)))
}

// of returns the token of a request, "" if it has none.
func (s *adminSessions) of(r *http.Request) string {
	c, err := r.Cookie(s.cookie)
	if err != nil {
		return ""
	}
	return c.Value
}

// set has the browser keep a token; an empty one: forget it. A browser that came
// through a proxy with TLS says so in the origin.
func (s *adminSessions) set(w http.ResponseWriter, r *http.Request, token string) {
	c := &http.Cookie{Name: s.cookie, Value: token, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, // #nosec G124 -- Secure wherever there is TLS; without it a browser would drop the cookie
		Secure: r.TLS != nil || strings.HasPrefix(r.Header.Get("Origin"), "https://"), MaxAge: int(adminSession / time.Second)}
	if token == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// login: POST /admin/login {"key":"…"} opens a session.
func (a *access) login(w http.ResponseWriter, r *http.Request) {
	if p := a.foreign(r); p != nil {
		a.refuse(w, r, p)
		return
	}
	if a.key == nil {
		WriteProblem(w, wire.NewProblem(http.StatusNotFound, wire.CodeNotFound, "no admin key is set: everything is open here"))
		return
	}
	body, p := ReadBody(r, maxLoginBody)
	if p != nil {
		WriteProblem(w, p)
		return
	}
	var in struct {
		Key string `json:"key"`
	}
	if err := json.Unmarshal(body, &in); err != nil || in.Key == "" {
		WriteProblem(w, wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, `the body must be {"key":"…"}`))
		return
	}
	if p := a.try(r, in.Key, "login"); p != nil {
		WriteProblem(w, p)
		return
	}
	a.sessions.close(a.sessions.of(r)) // a new login takes the place of the one before
	a.sessions.set(w, r, a.sessions.open(time.Now()))
	a.log.Info("an operator logged in", "event", "audit", "act", "login", "target", "dashboard", "who", "admin:key", "remote", r.RemoteAddr, "result", "ok")
	w.WriteHeader(http.StatusNoContent)
}

// logout: POST /admin/logout ends the caller's session.
func (a *access) logout(w http.ResponseWriter, r *http.Request) {
	if p := a.foreign(r); p != nil {
		a.refuse(w, r, p)
		return
	}
	if token := a.sessions.of(r); a.sessions.has(token, time.Now()) {
		a.sessions.close(token)
		a.log.Info("an operator logged out", "event", "audit", "act", "logout", "target", "dashboard", "who", "admin:session", "remote", r.RemoteAddr, "result", "ok")
	}
	a.sessions.set(w, r, "")
	w.WriteHeader(http.StatusNoContent)
}
