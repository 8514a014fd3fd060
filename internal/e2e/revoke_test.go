package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// A revocation ends the user's sessions; its tokens, and the tickets that were got with
// them, are refused by every locator within a second, also by one that is started later.
func TestRevoke(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef0123456789abcdef"
	l1 := startNormalLocator(t, "DIALRING_USER_JWT_SECRET="+secret)
	l2 := startNormalLocator(t, "DIALRING_USER_JWT_SECRET="+secret, "DIALRING_NATS_URL="+l1.nats)
	startNormalNode(t, "ws-1", l1.nats)
	l1.waitMembers(t, "ws-1")
	l2.waitMembers(t, "ws-1")
	l1.waitReady(t)
	l2.waitReady(t)
	token := func(user string, issued time.Time) string {
		claims := jwt.MapClaims{"sub": user, "exp": time.Now().Add(time.Hour).Unix()}
		if !issued.IsZero() {
			claims["iat"] = issued.Unix()
		}
		s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(secret))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	locate := func(l *locatorProc, token string) (int, wire.LocateResponse) {
		r, err := http.NewRequest("POST", "http://"+l.addr+"/v1/locate", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		var loc wire.LocateResponse
		_ = json.Unmarshal(b, &loc)
		return resp.StatusCode, loc
	}
	old := token("alice", time.Now().Add(-time.Minute))
	undated := token("alice", time.Time{})
	bob := token("bob", time.Now().Add(-time.Minute))

	c, err := client.New(client.Config{Locators: []string{"http://" + l1.addr}, Token: client.StaticToken(old), OnMessage: func(context.Context, client.Message) {},
		OnEvent: func(client.Event) {}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(t.Context()) }()
	eventually(t, "alice connects", func() bool { return c.State().State == client.Connected })
	_, early := locate(l2, old) // a ticket that is not used yet

	if n := l1.kick(t, "alice", "?revoke=true"); n != 1 {
		t.Errorf("%d sessions were closed", n)
	}
	revoked := time.Now()
	if stopped := (*client.StoppedError)(nil); !errors.As(await(t, "alice is stopped", ended), &stopped) || stopped.Code != wire.CloseKicked {
		t.Errorf("alice's client ended with %v", stopped)
	}
	if status, _ := locate(l1, old); status != 401 {
		t.Errorf("the locator that revoked: %d", status)
	}
	eventually(t, "the other locator refuses", func() bool { status, _ := locate(l2, old); return status == 401 })
	if d := time.Since(revoked); d > 5*time.Second { // a second, on a machine that is not busy
		t.Errorf("it took %s", d)
	}
	if status, _ := locate(l2, undated); status != 401 {
		t.Errorf("a token without iat: %d", status)
	}
	if status := dialStatus(t, early.URL, early.Ticket); status != 401 {
		t.Errorf("a ticket of before: %d", status)
	}
	if status, _ := locate(l2, bob); status != 200 {
		t.Errorf("bob: %d", status)
	}
	l3 := startNormalLocator(t, "DIALRING_USER_JWT_SECRET="+secret, "DIALRING_NATS_URL="+l1.nats)
	l3.waitMembers(t, "ws-1")
	eventually(t, "a locator that was started later answers", func() bool { status, _ := locate(l3, bob); return status == 200 })
	if status, _ := locate(l3, old); status != 401 {
		t.Errorf("a locator that was started later: %d", status)
	}

	eventually(t, "a token of afterwards is good", func() bool {
		status, loc := locate(l2, token("alice", time.Now()))
		return status == 200 && dialStatus(t, loc.URL, loc.Ticket) == 101
	})
	for _, q := range []string{"?revoke=yes", "?revoke=true&device=x", "?revoke=true&session=x"} {
		if status, _ := call(t, "DELETE", "http://"+l1.addr+"/v1/users/alice/sessions"+q, ""); status != 400 {
			t.Errorf("%s: %d", q, status)
		}
	}
}
