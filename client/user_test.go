package client

import (
	"fmt"
	"strings"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// welcomeAs is a welcome that names a user, with a message behind it.
func (s *session) welcomeAs(user string) {
	s.text(fmt.Sprintf(`{"type":"welcome","session":"s-1","user":%q,"device":"d","node":"ws-1","epoch":1,"since":"zz","head":1,"gap":true,"ping_interval_ms":20000}`, user))
	s.message("not-ours", `1`)
}

// A node that welcomes another user than the locator named is left, and nothing that it says
// counts: no message, no cursor.
func TestWelcomeOfAnotherUser(t *testing.T) {
	t.Parallel()
	for _, user := range []string{"mallory", "", "Alice"} {
		for _, token := range []bool{false, true} {
			t.Run(fmt.Sprintf("%q token=%t", user, token), func(t *testing.T) {
				t.Parallel()
				f := newFake(t, script{})
				cfg := f.config()
				if token {
					cfg.User, cfg.Token = "", StaticToken("token")
				}
				r := start(t, cfg)
				recv(t, f.locates, "a locate")
				s := recv(t, f.sessions, "a dial")
				s.welcomeAs(user)
				s.goodbye()
				if call := recv(t, f.locates, "a second locate"); len(call.Failed) > 0 {
					t.Errorf("%v are reported; it was reached", call.Failed)
				}
				s = recv(t, f.sessions, "a second dial")
				if since := s.req.URL.Query().Get("since"); since != "" {
					t.Errorf("dialed with the cursor %q of another user", since)
				}
				s.welcome(20_000)
				for e := recv(t, r.events, "an event"); e.State != Connected; e = recv(t, r.events, "an event") {
					if e.Err != nil && !strings.Contains(e.Err.Error(), "another user") {
						t.Errorf("it is not connected because of %v", e.Err)
					}
				}
				r.carries(s, "ours")
				r.ends()
			})
		}
	}
}

// A move to a node that welcomes another user has failed: the connection stays.
func TestMoveToAnotherUser(t *testing.T) {
	t.Parallel()
	f, b := newFake(t, script{}), newFake(t, script{})
	r, s1 := connected(t, f)
	s1.moveTo(b.ws, "ws-2", "t-2")
	s2 := recv(t, b.sessions, "the new node's session")
	s2.welcomeAs("mallory")
	s2.goodbye()
	recv(t, f.locates, "a locate")
	r.carries(s1, "m")
	r.cancel()
	s1.goodbye()
}

// With a token the first welcome says who the user is; a locator that then answers for
// another one is not listened to.
func TestLocateOfAnotherUser(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
		return f.here(func(l *wire.LocateResponse) {
			if n == 1 {
				l.User = "mallory"
			}
		})
	}})
	cfg := f.config()
	cfg.User, cfg.Token = "", StaticToken("token")
	r := start(t, cfg)
	recv(t, f.sessions, "a dial").welcome(20_000).close(1001, "")
	for e := r.await(Waiting); !strings.Contains(e.Err.Error(), "answers for another user"); e = r.await(Waiting) {
	}
	comesBack(t, f, r)
	if n := f.dials(); n != 2 {
		t.Errorf("%d dials", n)
	}
}
