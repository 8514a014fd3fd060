package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/examples/internal/demo"
	"github.com/dialring/dialring/internal/browser"
)

const patience = time.Minute // a bound on hangs

// chatUp runs the example until the test ends, and returns its page.
func chatUp(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	out := &output{up: make(chan struct{})}
	done := make(chan error, 1)
	go func() { done <- run(ctx, out, listen, time.Millisecond, false) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Ctrl-C ends it with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("Ctrl-C does not end it")
		}
		http.DefaultClient.CloseIdleConnections()
		goleak.VerifyNone(t)
	})
	select {
	case <-out.up:
	case err := <-done:
		t.Fatalf("ended early: %v", err)
	case <-time.After(patience):
		t.Fatal("it never said what to do")
	}
	return "http://" + listen
}

// output notices when the instructions were printed.
type output struct {
	b  bytes.Buffer
	up chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "Ctrl-C") {
		close(o.up)
	}
	return o.b.Write(p)
}

type loggedIn struct{ Locator, Token string }

func login(t *testing.T, page, name string) loggedIn {
	t.Helper()
	resp, err := http.PostForm(page+"/login", url.Values{"name": {name}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var in loggedIn
	if err := json.NewDecoder(resp.Body).Decode(&in); err != nil || resp.StatusCode != 200 {
		t.Fatalf("login of %s: %d %v", name, resp.StatusCode, err)
	}
	return in
}

// person is a client that does what the page does.
type person struct {
	*client.Client
	name string

	mu   sync.Mutex
	got  []heard
	node string
	more chan struct{} // closed when something changes
}

// heard is a message as a person understands it.
type heard struct{ from, room, text string }

func join(t *testing.T, page, name string) *person {
	t.Helper()
	p := &person{name: name, more: make(chan struct{})}
	change := func(f func()) {
		p.mu.Lock()
		defer p.mu.Unlock()
		f()
		close(p.more)
		p.more = make(chan struct{})
	}
	in := login(t, page, name)
	var err error
	p.Client, err = client.New(client.Config{Locators: []string{in.Locator}, Token: client.StaticToken(in.Token), Since: "0",
		OnMessage: func(_ context.Context, m client.Message) {
			var d line
			if err := m.Unmarshal(&d); err != nil {
				t.Errorf("%s gets %s", name, m.Data)
			}
			h := heard{from: m.From, text: d.Text}
			if m.From == "" { // of the backend
				h = heard{d.From, d.Room, d.Text}
			}
			change(func() { p.got = append(p.got, h) })
		},
		OnEvent: func(e client.Event) {
			if e.State == client.Connected {
				change(func() { p.node = e.Node })
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		leave()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	p.await(t, "a connection", func() bool { return p.node != "" })
	return p
}

// await waits until cond, which is called with p locked, holds.
func (p *person) await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	late := time.After(patience)
	for {
		p.mu.Lock()
		ok, more := cond(), p.more
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-more:
		case <-late:
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Fatalf("%s waits for %s in vain; it has %+v", p.name, what, p.got)
		}
	}
}

func (p *person) on() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.node
}

func drain(t *testing.T, page, node string) {
	t.Helper()
	resp, err := http.PostForm(page+"/drain", url.Values{"node": {node}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 {
		t.Fatalf("drain: %d %s", resp.StatusCode, b)
	}
}

// Two people talk alone and in the room, while the node of one of them drains, twice.
func TestChat(t *testing.T) {
	page := chatUp(t)
	alice, bob := join(t, page, "alice"), join(t, page, "bob")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	locator := login(t, page, "observer").Locator
	said, told := 0, 0 // messages to the room, and to bob alone
	one := func() {
		text := map[string]string{"text": fmt.Sprint("room ", said)}
		if _, err := alice.Request(ctx, text); err != nil {
			t.Fatalf("to the room: %v", err)
		}
		said++
		text = map[string]string{"text": fmt.Sprint("alone ", told)}
		if r, err := alice.Send(ctx, "bob", text); err != nil || !r.Stored {
			t.Fatalf("to bob: %+v %v", r, err)
		}
		told++
	}
	one()
	pace := time.NewTicker(120 * time.Millisecond) // nodes take 20 sends a second of a session
	defer pace.Stop()
	for range 2 {
		for range 3 {
			<-pace.C
			one()
		}
		from := alice.on()
		drain(t, page, from)
		for alice.on() == from {
			<-pace.C
			one()
		}
		for range 3 {
			<-pace.C
			one()
		}
		waitForNodes(t, locator, 3) // it started again
	}
	var room, alone []heard
	for i := range said {
		room = append(room, heard{"alice", "lobby", fmt.Sprint("room ", i)})
	}
	for i := range told {
		alone = append(alone, heard{"alice", "", fmt.Sprint("alone ", i)})
	}
	alice.await(t, "what was said", func() bool { return len(alice.got) >= said })
	bob.await(t, "what was said", func() bool { return len(bob.got) >= said+told })
	for _, p := range []*person{alice, bob} {
		p.mu.Lock()
		defer p.mu.Unlock()
		inRoom := slices.DeleteFunc(slices.Clone(p.got), func(h heard) bool { return h.room == "" })
		rest := slices.DeleteFunc(slices.Clone(p.got), func(h heard) bool { return h.room != "" })
		if !slices.Equal(inRoom, room) {
			t.Errorf("in the room %s hears %v, want %v", p.name, inRoom, room)
		}
		if p == bob && !slices.Equal(rest, alone) || p == alice && len(rest) > 0 {
			t.Errorf("alone %s hears %v", p.name, rest)
		}
	}
}

// waitForNodes waits until so many nodes are in the ring. A locator answers that without any, too.
func waitForNodes(t *testing.T, locator string, n int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) { // nothing tells of it
		req, err := http.NewRequest("GET", locator+"/v1/ring", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+demo.APIKey)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if strings.Count(string(b), `"active"`) == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("there are not %d nodes: %s", n, b)
		}
	}
}

// The page itself: two tabs in a real browser do what the clients above do.
func TestPage(t *testing.T) {
	page := chatUp(t)
	b := browser.Start(t)
	alice, bob := b.Open(page+"/?name=alice"), b.Open(page)
	bob.Do(`document.getElementById("name").value = "bob"; document.getElementById("login").requestSubmit()`)
	for name, p := range map[string]*browser.Page{"alice": alice, "bob": bob} {
		p.Await(`document.getElementById("state").textContent.startsWith("` + name + ` is on ws-")`)
	}
	say := func(p *browser.Page, to, text string) {
		t.Helper()
		p.Do(fmt.Sprintf(`document.getElementById("to").value = %q; document.getElementById("text").value = %q; document.getElementById("say").requestSubmit()`, to, text))
	}
	texts := func(p *browser.Page, script string) (out []string) {
		t.Helper()
		b, err := p.Run(script)
		if err == nil {
			err = json.Unmarshal([]byte(b), &out)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	lines := func(p *browser.Page, class string) []string {
		return texts(p, `[...document.querySelectorAll("li.`+class+`")].reverse().map(li => li.textContent)`)
	}
	shown := func(p *browser.Page, text string) {
		t.Helper()
		p.Await(fmt.Sprintf(`[...document.querySelectorAll("li")].some(li => li.textContent === %q)`, text))
	}
	const markup = "<img src=x onerror=alert(1)>"
	say(alice, "", "to all")
	say(bob, "alice", markup)
	shown(bob, "alice:to all")
	shown(alice, "bob to you:"+markup)

	room, alone := []string{"alice:to all"}, []string{"bob to you:" + markup}
	n := 0
	both := func() { // each awaits the one before: the order is known
		n++
		say(bob, "alice", fmt.Sprint("alone ", n))
		say(alice, "", fmt.Sprint("room ", n))
		shown(bob, fmt.Sprint("alice:room ", n))
		shown(alice, fmt.Sprint("alice:room ", n))
		shown(alice, fmt.Sprint("bob to you:alone ", n))
		room = append(room, fmt.Sprint("alice:room ", n))
		alone = append(alone, fmt.Sprint("bob to you:alone ", n))
	}
	once := func() {
		t.Helper()
		for _, c := range []struct {
			name, class string
			page        *browser.Page
			want        []string
		}{{"alice", "room", alice, room}, {"bob", "room", bob, room}, {"alice", "alone", alice, alone}} {
			if got := lines(c.page, c.class); !slices.Equal(got, c.want) {
				t.Errorf("%s's page shows %q, want %q", c.name, got, c.want)
			}
		}
	}
	pace := time.NewTicker(120 * time.Millisecond) // nodes take 20 sends a second of a session
	defer pace.Stop()

	locator := login(t, page, "observer").Locator
	// Alice's node drains, by her button, while both talk: she is never without a
	// connection.
	alice.Do(`states = []; new MutationObserver(() => states.push(document.getElementById("state").textContent)).observe(document.getElementById("state"), { childList: true })`)
	alice.Do(`document.getElementById("drain").click()`)
	for len(lines(alice, "event")) == 0 {
		<-pace.C
		both()
	}
	both()
	if e := lines(alice, "event"); !strings.HasPrefix(e[0], "you moved from ws-") {
		t.Errorf("alice's page says %q", e)
	}
	for _, s := range texts(alice, `states`) {
		if !strings.HasPrefix(s, "alice is on ws-") {
			t.Errorf("on the way alice's page says %q", s)
		}
	}
	once()
	for _, p := range []*browser.Page{alice, bob} {
		if c := p.Complaints(); c != "" {
			t.Errorf("the browser complains: %s", c)
		}
	}

	// All nodes drain at once: the pages are moved on and on, or have nobody left to
	// move to and come back when there is.
	waitForNodes(t, locator, 3)
	for i := range 3 {
		drain(t, page, fmt.Sprint("ws-", i+1))
	}
	both()
	waitForNodes(t, locator, 3)
	both()
	once()
	t.Logf("on the way alice's page says %q", texts(alice, `states`))
}

// What the backend must refuse.
func TestRefusals(t *testing.T) {
	page := chatUp(t)
	do := func(path, contentType, body string, header map[string]string) int {
		t.Helper()
		req, err := http.NewRequest("POST", page+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		for k, v := range header {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	const form = "application/x-www-form-urlencoded"
	for _, name := range []string{"", "..", "a/b", "a\nb", "<b>", strings.Repeat("a", 33)} {
		if code := do("/login", form, url.Values{"name": {name}}.Encode(), nil); code != 400 {
			t.Errorf("login as %q: %d", name, code)
		}
	}
	if code := do("/login", form, "name=alice", map[string]string{"Origin": "http://127.0.0.1:1"}); code != 403 {
		t.Errorf("login from another page: %d", code)
	}
	if code := do("/drain", form, "node=ws-9", nil); code != 502 {
		t.Errorf("drain of no node: %d", code)
	}
	forged := `{"id":"x","user":"alice","device":"d","session":"s","node":"ws-1","time":"2026-01-01T00:00:00Z","data":{"text":"hello"}}`
	if code := do("/dialring", "application/json", forged, map[string]string{"Dialring-Signature": "t=1,v1=00"}); code != 401 {
		t.Errorf("a forged webhook: %d", code)
	}
	in := login(t, page, "mallory")
	head, claims, _ := strings.Cut(in.Token, ".")
	_, mac, _ := strings.Cut(claims, ".")
	_, other, _ := strings.Cut(token("alice", time.Now()), ".")
	other, _, _ = strings.Cut(other, ".")
	for tok, want := range map[string]int{in.Token: 200, head + "." + other + "." + mac: 401} {
		req, err := http.NewRequest("POST", in.Locator+"/v1/locate", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+tok)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("locate: %d, want %d", resp.StatusCode, want)
		}
	}
	p := join(t, page, "mallory")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, text := range []string{"", strings.Repeat("a", 2001)} {
		var refused *client.SendError
		if _, err := p.Request(ctx, map[string]string{"text": text}); !errors.As(err, &refused) || !strings.Contains(refused.Detail, "2000") {
			t.Errorf("a text of %d bytes: %v", len(text), err)
		}
	}
}

// The page may do nothing that it need not do.
func TestPolicy(t *testing.T) {
	page := chatUp(t)
	for _, path := range []string{"/", "/chat.js", "/dialring.js", "/chat.css"} {
		resp, err := http.Get(page + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		csp := resp.Header.Get("Content-Security-Policy")
		if resp.StatusCode != 200 || !strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: %d, policy %q", path, resp.StatusCode, csp)
		}
		for _, sink := range []string{"innerHTML", "outerHTML", "insertAdjacent", "document.write", "https://"} {
			if strings.Contains(string(b), sink) {
				t.Errorf("%s has %s", path, sink)
			}
		}
	}
}
