package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// User is what the cluster knows of a user now, from the connections themselves.
type User struct {
	Node     string // that owns the user
	Epoch    uint64 // of the ring that says so
	Online   bool
	Sessions []UserSession
	Head     uint64 // number of the newest stored message; 0: none
	// HeadUnknown: the store is away, and Head is the last that was known, or 0.
	HeadUnknown bool
}

// UserSession is one connection of a user.
type UserSession struct {
	ID, Device, Node string
	ConnectedAt      time.Time
	RemoteAddr       string
	AckedSeq         uint64 // newest stored message that it acknowledged
	QueuedBytes      int    // that wait for it
}

// User asks who of a user's devices is connected where.
func (p *Pusher) User(ctx context.Context, user string) (User, error) {
	var r wire.UserResponse
	err := p.do(ctx, http.MethodGet, "/v1/users/"+url.PathEscape(user), http.Header{}, nil, 0, true, &r)
	u := User{Node: r.Node, Epoch: r.Epoch, Online: r.Online, Head: r.Head, HeadUnknown: r.HeadUnknown}
	for _, s := range r.Sessions {
		u.Sessions = append(u.Sessions, UserSession(s))
	}
	return u, err
}

// Presence asks who of users has how many sessions; those without any are not in the map.
// 10,000 users are one call; more are several, one after the other.
func (p *Pusher) Presence(ctx context.Context, users []string) (map[string]int, error) {
	out := map[string]int{}
	for part := range slices.Chunk(users, wire.MaxUsersPerCall) {
		body, err := json.Marshal(map[string][]string{"users": part})
		if err != nil {
			return nil, err
		}
		var r struct {
			Online map[string]int `json:"online"`
		}
		if err := p.do(ctx, http.MethodPost, "/v1/presence", jsonHeader(), body, 0, true, &r); err != nil {
			return nil, err
		}
		for u, n := range r.Online {
			out[u] = n
		}
	}
	return out, nil
}

func jsonHeader() http.Header { return http.Header{"Content-Type": {"application/json"}} }

// KickOption says which sessions Kick ends.
type KickOption func(url.Values)

// KickDevice ends only sessions of one device.
func KickDevice(device string) KickOption { return func(q url.Values) { q.Set("device", device) } }

// KickSession ends only one session.
func KickSession(id string) KickOption { return func(q url.Values) { q.Set("session", id) } }

// RevokeTokens also has all locators refuse tokens of the user that were issued before
// now (by their iat; tokens without one, too). It goes with all of the user's sessions.
func RevokeTokens() KickOption { return func(q url.Values) { q.Set("revoke", "true") } }

// Kick ends sessions of a user, whose clients then stop for good, and returns how many.
func (p *Pusher) Kick(ctx context.Context, user string, opts ...KickOption) (int, error) {
	q := url.Values{}
	for _, o := range opts {
		o(q)
	}
	var r struct {
		Closed int `json:"closed"`
	}
	err := p.do(ctx, http.MethodDelete, "/v1/users/"+url.PathEscape(user)+"/sessions"+query(q), http.Header{}, nil, 0, true, &r)
	return r.Closed, err
}
