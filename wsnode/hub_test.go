package wsnode

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

func at(sec int) time.Time { return time.Unix(int64(sec), 0) }

func login(id, device string, sec int) *session {
	return &session{id: id, user: "alice", device: device, connectedAt: at(sec)}
}

func movedHere(id, device string, sec int) *session {
	s := login(id, device, sec)
	s.moved = true
	return s
}

func there(id, device string, sec int) wire.Session {
	return wire.Session{ID: id, Device: device, ConnectedAt: at(sec)}
}

func TestHubPolicies(t *testing.T) {
	const replaced, tooMany = wire.CloseReplaced, wire.CloseTooManySessions
	d := login("d1", "d", 10)
	for name, c := range map[string]struct {
		device, sessions string // policies; empty: replace, oldest
		max              int
		here             []*session
		elsewhere        []wire.Session
		add              *session
		refused          bool
		want             map[string]int // code by id; + before an id: it is elsewhere
	}{
		"first":                        {add: d},
		"same device here":             {here: []*session{login("a", "d", 1)}, add: d, want: map[string]int{"a": replaced}},
		"same device elsewhere":        {elsewhere: []wire.Session{there("a", "d", 1)}, add: d, want: map[string]int{"+a": replaced}},
		"both":                         {here: []*session{login("a", "d", 1)}, elsewhere: []wire.Session{there("b", "d", 2)}, add: d, want: map[string]int{"a": replaced, "+b": replaced}},
		"one that is here and there":   {here: []*session{login("a", "d", 1)}, elsewhere: []wire.Session{there("a", "d", 1)}, add: d, want: map[string]int{"a": replaced, "+a": replaced}},
		"named by two former owners":   {elsewhere: []wire.Session{there("a", "d", 1), there("a", "d", 1)}, add: d, want: map[string]int{"+a": replaced}},
		"other devices":                {here: []*session{login("a", "e", 1)}, elsewhere: []wire.Session{there("b", "f", 1)}, add: d},
		"allow":                        {device: "allow", here: []*session{login("a", "d", 1)}, elsewhere: []wire.Session{there("b", "d", 1)}, add: d},
		"reject here":                  {device: "reject", here: []*session{login("a", "d", 1)}, add: d, refused: true},
		"reject elsewhere":             {device: "reject", elsewhere: []wire.Session{there("a", "d", 1)}, add: d, refused: true},
		"reject, other device":         {device: "reject", here: []*session{login("a", "e", 1)}, add: d},
		"limit, oldest here":           {max: 2, here: []*session{login("a", "a", 1), login("b", "b", 2)}, add: d, want: map[string]int{"a": tooMany}},
		"limit, oldest elsewhere":      {max: 2, here: []*session{login("a", "a", 3)}, elsewhere: []wire.Session{there("b", "b", 2)}, add: d, want: map[string]int{"+b": tooMany}},
		"limit, two over":              {max: 2, here: []*session{login("a", "a", 3)}, elsewhere: []wire.Session{there("b", "b", 2), there("c", "c", 4)}, add: d, want: map[string]int{"+b": tooMany, "a": tooMany}},
		"limit, one came again":        {max: 2, here: []*session{login("a2", "a", 3)}, elsewhere: []wire.Session{there("a", "a", 1)}, add: d},
		"limit, one came again, allow": {device: "allow", max: 2, here: []*session{login("a2", "a", 3)}, elsewhere: []wire.Session{there("a", "a", 1)}, add: d, want: map[string]int{"+a": tooMany}},
		"limit, newest":                {max: 2, sessions: "newest", here: []*session{login("a", "a", 3)}, elsewhere: []wire.Session{there("b", "b", 2)}, add: d, refused: true},
		"limit, newest that replaces":  {max: 2, sessions: "newest", here: []*session{login("a", "a", 3), login("b", "d", 2)}, add: d, want: map[string]int{"b": replaced}},
		"moved, older rival":           {here: []*session{login("a", "d", 1)}, add: movedHere("m", "d", 5), want: map[string]int{"a": replaced}},
		"moved, newer rival":           {here: []*session{login("a", "d", 9)}, add: movedHere("m", "d", 5), want: map[string]int{"m": replaced}},
		"moved, newer elsewhere":       {elsewhere: []wire.Session{there("a", "d", 9)}, add: movedHere("m", "d", 5), want: map[string]int{"m": replaced}},
		"moved, reject":                {device: "reject", here: []*session{login("a", "d", 1)}, add: movedHere("m", "d", 5), want: map[string]int{"a": replaced}},
		"moved, reject, newer rival":   {device: "reject", here: []*session{login("a", "d", 9)}, add: movedHere("m", "d", 5), want: map[string]int{"m": replaced}},
		"moved, allow":                 {device: "allow", here: []*session{login("a", "d", 9)}, add: movedHere("m", "d", 5)},
		"moved, limit, it is oldest":   {max: 1, here: []*session{login("a", "a", 9)}, add: movedHere("m", "d", 5), want: map[string]int{"m": tooMany}},
		"moved, limit newest, not it":  {max: 1, sessions: "newest", here: []*session{login("a", "a", 1)}, add: movedHere("m", "d", 5), want: map[string]int{"a": tooMany}},
		"moved, itself elsewhere":      {max: 1, elsewhere: []wire.Session{there("m", "d", 5)}, add: movedHere("m", "d", 5)},
		"moved, itself here":           {max: 1, here: []*session{login("m", "d", 5)}, add: movedHere("m", "d", 5)},
		"moved, itself here, reject":   {device: "reject", here: []*session{login("m", "d", 5)}, add: movedHere("m", "d", 5)},
		"moved, itself and one, limit": {max: 2, here: []*session{login("m", "d", 5), login("a", "a", 1)}, add: movedHere("m", "d", 5)},
	} {
		cfg := Config{DevicePolicy: "replace", SessionPolicy: "oldest", MaxSessionsPerUser: 16}
		if c.device != "" {
			cfg.DevicePolicy = c.device
		}
		if c.sessions != "" {
			cfg.SessionPolicy = c.sessions
		}
		if c.max > 0 {
			cfg.MaxSessionsPerUser = c.max
		}
		h := newHub(newPresence(time.Second))
		open := Config{DevicePolicy: "allow", MaxSessionsPerUser: 100}
		for _, s := range c.here {
			if _, p := h.add(s, &open, nil); p != nil {
				t.Fatal(p)
			}
		}
		out, p := h.add(c.add, &cfg, c.elsewhere)
		if (p != nil) != c.refused || p != nil && (p.Status != 409 || p.Code != wire.CodeTooManySessions) {
			t.Errorf("%s: refused %v", name, p)
		}
		want := len(c.here) + 1
		if c.refused {
			want--
		}
		got := map[string]int{}
		for _, v := range out {
			if v.s == nil {
				got["+"+v.id] = v.code
				continue
			}
			got[v.id] = v.code
			if v.s != c.add {
				want--
			}
			if v.id != v.s.id || v.s != c.add && !slices.Contains(c.here, v.s) {
				t.Errorf("%s: the victim %s is no session of here", name, v.id)
			}
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: victims %v, want %v", name, got, c.want)
		}
		if _, list := h.find([]byte("alice")); len(list) != want || h.sessions.Load() != int64(want) {
			t.Errorf("%s: %d sessions are left, counted %d, want %d", name, len(list), h.sessions.Load(), want)
		}
	}
}

// A session on two connections is one: the earlier is marked, and goes on when
// the later one goes first.
func TestHubSameSession(t *testing.T) {
	cfg := Config{DevicePolicy: "replace", SessionPolicy: "newest", MaxSessionsPerUser: 2}
	for _, newerFirst := range []bool{true, false} {
		h := newHub(newPresence(time.Second))
		a, other, b := login("m", "d", 5), login("o", "e", 6), movedHere("m", "d", 5)
		for _, s := range []*session{a, other, b} {
			if out, p := h.add(s, &cfg, nil); len(out) > 0 || p != nil {
				t.Fatalf("%s: %v %v", s.id, out, p)
			}
		}
		if !a.old.Load() || b.old.Load() || other.old.Load() || h.sessions.Load() != 3 {
			t.Fatalf("old: %v, the newer %v, the other one %v; %d connections", a.old.Load(), b.old.Load(), other.old.Load(), h.sessions.Load())
		}
		if newerFirst {
			h.remove(b)
			if a.old.Load() {
				t.Error("the newer connection has gone, and the earlier one is still marked")
			}
			h.remove(a)
		} else {
			h.remove(a)
			if b.old.Load() {
				t.Error("the newer connection is marked")
			}
			h.remove(b)
		}
		if other.old.Load() || h.sessions.Load() != 1 {
			t.Errorf("the other one is marked: %v; %d connections", other.old.Load(), h.sessions.Load())
		}
	}
}

// Through any adding and removing the hub's counter is the number of sessions in
// it, and no session is lost or there twice.
func TestHubModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{DevicePolicy: rapid.SampledFrom([]string{"replace", "allow", "reject"}).Draw(t, "device policy"),
			SessionPolicy: rapid.SampledFrom([]string{"oldest", "newest"}).Draw(t, "session policy"), MaxSessionsPerUser: rapid.IntRange(1, 4).Draw(t, "max")}
		h, in, ever := newHub(newPresence(time.Second)), map[*session]bool{}, []*session{}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(ever) > 0 && rapid.IntRange(0, 2).Draw(t, "what") == 0 {
				s := rapid.SampledFrom(ever).Draw(t, "removed") // perhaps once more
				h.remove(s)
				delete(in, s)
			} else {
				s := login(fmt.Sprintf("s%d", i), fmt.Sprintf("d%d", rapid.IntRange(0, 3).Draw(t, "device")), rapid.IntRange(0, 20).Draw(t, "at"))
				s.user, s.moved = rapid.SampledFrom([]string{"alice", "bob"}).Draw(t, "user"), rapid.Bool().Draw(t, "moved")
				if len(ever) > 0 && s.moved && rapid.Bool().Draw(t, "known") {
					o := rapid.SampledFrom(ever).Draw(t, "same")
					s.id, s.user, s.device, s.connectedAt = o.id, o.user, o.device, o.connectedAt
				}
				var elsewhere []wire.Session
				for k := range rapid.IntRange(0, 2).Draw(t, "elsewhere") {
					elsewhere = append(elsewhere, there(fmt.Sprintf("e%d", k), fmt.Sprintf("d%d", k), k*10))
				}
				out, p := h.add(s, &cfg, elsewhere)
				if p != nil {
					if s.moved {
						t.Fatalf("a moved session is refused: %v", p)
					}
					if len(out) > 0 {
						t.Fatal("refused, and others have to go")
					}
					continue
				}
				in[s], ever = true, append(ever, s)
				for _, v := range out {
					if v.s != nil && v.s != s {
						// A twin goes only with the session itself.
						self := slices.ContainsFunc(out, func(v victim) bool { return v.s == s })
						if !in[v.s] || v.s.user != s.user || v.s.id == s.id && !self {
							t.Fatalf("%s has to go for %s", v.id, s.id)
						}
						delete(in, v.s)
					}
					if v.s != nil && v.code == wire.CloseReplaced && s.moved && v.s.connectedAt.After(s.connectedAt) {
						t.Fatalf("%s is newer than %s, which moved here, and has to go for it", v.id, s.id)
					}
				}
			}
			found := 0
			h.each(func(s *session) {
				if !in[s] {
					t.Fatalf("%s is still there", s.id)
				}
				found++
			})
			if found != len(in) || h.sessions.Load() != int64(found) {
				t.Fatalf("%d sessions, counted %d, want %d", found, h.sessions.Load(), len(in))
			}
		}
	})
}

func TestKickedSessionsForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k kickedSessions
		has := func(id string) bool { return k.has(&session{id: id, moved: true}) }
		k.sweep(time.Now())
		if has("a") {
			t.Error("kicked before any was")
		}
		k.add("a")
		time.Sleep(ticket.Life / 2)
		k.add("b")
		time.Sleep(ticket.Life/2 - time.Nanosecond)
		if k.sweep(time.Now()); !has("a") || !has("b") || has("c") {
			t.Error("forgotten while a ticket may be good, or made up")
		}
		time.Sleep(time.Nanosecond)
		if has("a") || !has("b") {
			t.Error("a is remembered, or b is not")
		}
		if k.sweep(time.Now()); len(k.until) != 1 {
			t.Errorf("%v are kept", k.until)
		}
		time.Sleep(ticket.Life)
		if k.sweep(time.Now()); len(k.until) != 0 {
			t.Errorf("%v are kept", k.until)
		}
	})
}

// A kick of a user who is moving counts for the sessions that began before it and
// arrive after it, and for no others.
func TestKickOfMovingUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k kickedSessions
		before := time.Now()
		time.Sleep(time.Second)
		k.addUser("alice", peer.Kick{Device: "phone"})
		k.addUser("carol", peer.Kick{Revoke: true})
		time.Sleep(time.Second)
		for _, c := range []struct {
			s    *session
			want bool
		}{
			{&session{moved: true, user: "alice", device: "phone", connectedAt: before}, true},
			{&session{moved: true, user: "alice", device: "phone", connectedAt: time.Now()}, false},
			{&session{moved: true, user: "alice", device: "tv", connectedAt: before}, false},
			{&session{moved: true, user: "bob", device: "phone", connectedAt: before}, false},
			{&session{user: "alice", device: "phone", connectedAt: before, issued: before}, false}, // a login
			{&session{user: "carol", device: "phone", issued: before}, true},                       // with a ticket of before a revocation
			{&session{user: "carol", device: "phone", issued: time.Now().Add(revokeSlack)}, false},
		} {
			if got := k.has(c.s); got != c.want {
				t.Errorf("%s's %s of %s: kicked %v, want %v", c.s.user, c.s.device, c.s.connectedAt, got, c.want)
			}
		}
		time.Sleep(kickedFor)
		if k.sweep(time.Now()); len(k.users) != 0 {
			t.Errorf("%v are kept", k.users)
		}
	})
}

// However often a user was kicked, a revocation counts.
func TestRevocationAmongKicks(t *testing.T) {
	var k kickedSessions
	before := time.Now().Add(-time.Minute)
	for range 2 * maxKicks {
		k.addUser("alice", peer.Kick{Device: "x"})
	}
	k.addUser("alice", peer.Kick{Revoke: true})
	for range 2 * maxKicks {
		k.addUser("alice", peer.Kick{Device: "y"})
	}
	if !k.has(&session{user: "alice", device: "z", issued: before}) {
		t.Error("a ticket of before is good")
	}
	if !k.has(&session{moved: true, user: "alice", device: "y", connectedAt: before}) || len(k.users["alice"]) != maxKicks {
		t.Error("the newest kick is forgotten, or all are kept")
	}
}
