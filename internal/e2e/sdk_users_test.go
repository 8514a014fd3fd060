package e2e

import (
	"slices"
	"testing"

	"github.com/dialring/dialring/client"
)

// The SDK's calls for services: presence, sessions, kicks, groups.
func TestPusherUsersAndGroups(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "ws-1", l.nats)
	l.waitMembers(t, "ws-1")
	p, ctx := streamPusher(t, l), t.Context()
	const alice = "a/b c%2F" // in paths
	one, two := dialEar(t, l, alice, "one"), dialEar(t, l, alice, "two")
	if online, err := p.Presence(ctx, []string{alice, "bob"}); err != nil || len(online) != 1 || online[alice] != 2 {
		t.Errorf("presence: %v, %v", online, err)
	}
	u, err := p.User(ctx, alice)
	if err != nil || !u.Online || u.Node != "ws-1" || len(u.Sessions) != 2 || u.Sessions[0].Device == u.Sessions[1].Device || u.Sessions[0].ConnectedAt.IsZero() {
		t.Errorf("user: %+v, %v", u, err)
	}
	if n, err := p.Kick(ctx, alice, client.KickDevice("one")); err != nil || n != 1 {
		t.Errorf("kick: %d, %v", n, err)
	}
	one.closes(t, 4002)
	if u, err = p.User(ctx, alice); err != nil || len(u.Sessions) != 1 {
		t.Fatalf("user: %+v, %v", u, err)
	}
	if n, err := p.Kick(ctx, alice, client.KickSession("another")); err != nil || n != 0 {
		t.Errorf("kick of a session that is not there: %d, %v", n, err)
	}
	if n, err := p.Kick(ctx, alice, client.KickSession(u.Sessions[0].ID)); err != nil || n != 1 {
		t.Errorf("kick: %d, %v", n, err)
	}
	two.closes(t, 4002)

	const group = "team/1"
	if err := p.ChangeGroup(ctx, group, []string{alice, "bob", "carol"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.ChangeGroup(ctx, group, nil, []string{"bob"}); err != nil {
		t.Fatal(err)
	}
	var members []string
	if err := p.Members(ctx, group, func(u string) bool { members = append(members, u); return true }); err != nil || !slices.Equal(members, []string{alice, "carol"}) {
		t.Errorf("members: %v, %v", members, err)
	}
	r, err := p.PushGroup(ctx, group, "hello", client.IdempotencyKey("k"))
	if err != nil || r.Members != 2 || r.Stored != 2 || r.Failed != 0 {
		t.Errorf("push: %+v, %v", r, err)
	}
	if r, err = p.PushGroup(ctx, group, "hello", client.IdempotencyKey("k")); err != nil || r.Stored != 2 {
		t.Errorf("once more: %+v, %v", r, err)
	}
	dialSince(t, l, "carol", "d", "0").message(t, 1, `"hello"`)
	if u, err := p.User(ctx, "carol"); err != nil || u.Head != 1 {
		t.Errorf("carol's log has %d messages, %v", u.Head, err)
	}
}
