package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"time"
	"unicode/utf8"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/client/js"
	"github.com/dialring/dialring/examples/internal/demo"
)

// room is the group of all who have logged in.
const room = "lobby"

//go:embed page
var files embed.FS

// backend is the application: it says who users are, who is in the room, and what is
// said there.
type backend struct {
	locator string
	pusher  *client.Pusher
}

func newBackend(locator string) (*backend, error) {
	p, err := client.NewPusher(client.PusherConfig{Locators: []string{locator}, APIKey: demo.APIKey})
	return &backend{locator, p}, err
}

func (b *backend) handler() http.Handler {
	page, err := fs.Sub(files, "page")
	if err != nil {
		panic(err) // its name is a good one
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", b.secure(http.FileServerFS(page)))
	mux.Handle("GET /dialring.js", b.secure(js.Handler()))
	mux.HandleFunc("POST /login", b.login)
	mux.HandleFunc("POST /drain", b.drain)
	mux.Handle("POST /dialring", client.Webhook(appSecret, b.said))
	// Other pages that are open in this browser must do none of that.
	return http.NewCrossOriginProtection().Handler(mux)
}

// secure lets the page load what is its own, and connect to the cluster.
func (b *backend) secure(h http.Handler) http.Handler {
	policy := "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' " + b.locator + " ws://127.0.0.1:*; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		h.ServeHTTP(w, r)
	})
}

var nameForm = regexp.MustCompile(`^[\pL\pN][\pL\pN ._-]{0,31}$`)

// login gives a token to whoever says a name, and puts the user into the room. Yours
// would ask for a password.
func (b *backend) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	name := r.PostFormValue("name")
	if !nameForm.MatchString(name) {
		http.Error(w, "A name has up to 32 letters and digits.", http.StatusBadRequest)
		return
	}
	if err := b.pusher.ChangeGroup(r.Context(), room, []string{name}, nil); err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(map[string]string{"locator": b.locator, "token": token(name, time.Now())})
}

// token makes a user token: a JWT whose sub is the user, and whose send_to says whom
// the user may write to: here, everyone.
func token(user string, now time.Time) string {
	claims, err := json.Marshal(map[string]any{"sub": user, "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(), "send_to": []string{"*"}})
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	signed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(claims)
	mac := hmac.New(sha256.New, []byte(userSecret))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// line is what is said in the room. The page believes its From, since it comes from
// the backend; what other users send has a sender that the node sets.
type line struct {
	Room string `json:"room"`
	From string `json:"from"`
	Text string `json:"text"`
}

// said takes what a client sends to the application, and pushes it to all in the room.
func (b *backend) said(ctx context.Context, m client.Sent) (any, error) {
	var msg struct{ Text string }
	if err := json.Unmarshal(m.Data, &msg); err != nil || msg.Text == "" || utf8.RuneCountInString(msg.Text) > 2000 {
		return nil, &client.RefusedError{Detail: "a message has a text of up to 2000 characters"}
	}
	// The webhook may come again with the same id: to whoever has the message, it is
	// not pushed twice.
	pushed, err := b.pusher.PushGroup(ctx, room, line{room, m.User, msg.Text}, client.IdempotencyKey(m.ID))
	if err == nil && pushed.Failed > 0 {
		err = errors.New("not all have it yet")
	}
	if err != nil {
		return nil, err // the node tries again
	}
	return map[string]int{"members": pushed.Members}, nil
}

// drain has a node moved away from; the page has a button for that.
func (b *backend) drain(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	node := r.PostFormValue("node")
	if err := b.askToDrain(r.Context(), node); err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "%s drains; it starts again in a while.\n", node) // #nosec G705 -- plain text
}

// askToDrain does what an operator does with curl.
func (b *backend) askToDrain(ctx context.Context, node string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.locator+"/v1/nodes/"+url.PathEscape(node)+"/drain", nil) // #nosec G704 -- the locator is fixed, and the node escaped
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+demo.APIKey)
	resp, err := http.DefaultClient.Do(req) // #nosec G704 -- the locator is fixed, and the node escaped
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		answer, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return nil
}
