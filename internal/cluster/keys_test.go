package cluster

import (
	"crypto/ed25519"
	"errors"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ticket"
)

// public is the key alone.
func (k *Keys) public(kid string) ed25519.PublicKey {
	pub, _ := k.Key(kid)
	return pub
}

// keyBook runs a participant's Keys and waits until its key is published.
func keyBook(t *testing.T, c *Conn) *Keys {
	t.Helper()
	k := NewKeys(c, NewRings(c, quiet), quiet, ticket.NewSigner(), "locator:"+t.Name())
	background(t, k.Run)
	await(t, "a published key", k.Published())
	return k
}

// What one participant signs another can check, through the published key; the
// signer's clock is what counts, as far as its heartbeats tell.
func TestKeysFound(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	a := keyBook(t, dial(t, s, "c"))
	b := keyBook(t, dial(t, s, "c"))
	if pub := b.public(a.signer.KID); !pub.Equal(a.signer.Public) {
		t.Fatalf("found %x", pub)
	}
	if pub := a.public(a.signer.KID); !pub.Equal(a.signer.Public) {
		t.Error("it does not know its own key")
	}
	v := ticket.NewVerifier("ws-1", b, 100)
	now := time.Now()
	theirs := now.Add(-5 * time.Minute) // a's clock is five minutes behind
	token := a.signer.Ticket(ticket.Ticket{User: "alice", Device: "d", Node: "ws-1", Epoch: 1}, theirs)
	if _, err := v.Ticket(token, now); !errors.Is(err, ticket.ErrExpired) {
		t.Errorf("without knowing the skew: %v", err)
	}
	b.Saw(a.signer.KID, time.Now().Add(-5*time.Minute))
	if skew := b.Skew(a.signer.KID); skew > -5*time.Minute || skew < -5*time.Minute-patience {
		t.Errorf("skew %s", skew)
	}
	if got, err := v.Ticket(token, now); err != nil || got.User != "alice" {
		t.Errorf("with the skew: %+v %v", got, err)
	}
	// A heartbeat that a cut network held back for a minute says nothing about the clock.
	b.Saw(a.signer.KID, time.Now().Add(-6*time.Minute))
	token = a.signer.Ticket(ticket.Ticket{User: "bob", Device: "d", Node: "ws-1", Epoch: 1}, theirs)
	if got, err := v.Ticket(token, now); err != nil || got.User != "bob" {
		t.Errorf("behind an old heartbeat: %+v %v", got, err)
	}
}

// A key that the store does not have is refused, and the store is not asked
// for it again at once: it would find it now. A heartbeat that names it does ask.
func TestUnknownKey(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	a := keyBook(t, dial(t, s, "c"))
	lateConn := dial(t, s, "c")
	late := NewKeys(lateConn, NewRings(lateConn, quiet), quiet, ticket.NewSigner(), "locator:late")
	kid := late.signer.KID
	if a.public(kid) != nil {
		t.Fatal("a key that nobody published is known")
	}
	background(t, late.Run)
	await(t, "a published key", late.Published())
	if a.public(kid) != nil {
		t.Error("the store is asked again at once")
	}
	a.Saw(kid, time.Now())
	eventually(t, "the key that a heartbeat named", func() bool { return a.public(kid).Equal(late.signer.Public) })
	for _, kid := range []string{"", "../../etc/passwd", "ABCDEF012345678=", "0123456789abcde", "0123456789abcdef0", "*", ">", "0123456789abcde*", "0123456.89abcdef"} {
		if a.public(kid) != nil {
			t.Errorf("%q is known", kid)
		}
		a.Saw(kid, time.Now())
		if _, kept := a.known[kid]; kept {
			t.Errorf("%q is kept", kid)
		}
	}
}

// Strangers can make up key ids: neither the store nor the memory suffers.
func TestMadeUpKeys(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	k := keyBook(t, dial(t, s, "c"))
	begin := time.Now()
	for range 2000 {
		k.public(ticket.NewSigner().KID)
	}
	asked := len(k.known)
	if limit := 50 + 5*int(time.Since(begin)/time.Second+1); asked > limit || asked == 0 {
		t.Errorf("2000 made-up keys: the store was asked for %d, at most %d are allowed", asked, limit)
	}
	for i := range maxUnknown { // as after weeks of that
		k.known[ticket.NewSigner().KID] = &knownKey{checked: begin.Add(-time.Duration(i+31) * time.Second)}
	}
	k.limit.SetBurst(1000)
	k.limit.SetLimit(1000)
	eventually(t, "a fetch", func() bool { return k.limit.Tokens() >= 1 })
	k.public(ticket.NewSigner().KID)
	if n := len(k.known); n > asked+1 {
		t.Errorf("%d keys are remembered that do not exist", n)
	}
}

// A key stays good while NATS is away, and is published again to a store that
// comes back empty.
func TestKeysSurviveNATS(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	addr := s.Addr()
	a, b := keyBook(t, dial(t, s, "c")), keyBook(t, dial(t, s, "c"))
	if a.public(b.signer.KID) == nil {
		t.Fatal("not found")
	}
	s.Stop()
	eventually(t, "a lost connection", func() bool { return !a.bus.Up() })
	a.mu.Lock()
	a.known[b.signer.KID].checked = time.Now().Add(-2 * keyRefresh) // due for another look
	a.mu.Unlock()
	for range 3 {
		if !a.public(b.signer.KID).Equal(b.signer.Public) {
			t.Fatal("a known key is gone with NATS")
		}
	}
	eventually(t, "the end of the look", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return !a.known[b.signer.KID].asking
	})
	if !a.public(b.signer.KID).Equal(b.signer.Public) {
		t.Error("a known key is gone after a look at a store that is away")
	}
	again := startNATS(t, t.TempDir(), addr)
	strangerConn := dial(t, again, "c")
	stranger := NewKeys(strangerConn, NewRings(strangerConn, quiet), quiet, ticket.NewSigner(), "locator:new")
	eventually(t, "the key in the new store", func() bool {
		stranger.Saw(b.signer.KID, time.Now())
		return stranger.public(b.signer.KID).Equal(b.signer.Public)
	})
}
