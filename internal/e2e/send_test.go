package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// talker is a user of the SDK who may send.
type talker struct {
	*client.Client
	got  chan client.Message
	node chan string // at each connect
}

func talk(t *testing.T, user string, sendTo []string, locators ...*locatorProc) *talker {
	t.Helper()
	k := &talker{got: make(chan client.Message, 4096), node: make(chan string, 64)}
	var urls []string
	for _, l := range locators {
		urls = append(urls, "http://"+l.addr)
	}
	as := locators[0].as(user, sendTo...)
	c, err := client.New(client.Config{Locators: urls, User: as.User, SendTo: as.SendTo, Token: as.Token,
		HTTP:      &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		OnMessage: func(_ context.Context, m client.Message) { k.got <- m },
		OnEvent: func(e client.Event) {
			if e.State == client.Connected {
				k.node <- e.Node
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	k.Client = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", user, err)
		}
	})
	await(t, user+" connects", k.node)
	return k
}

// wants checks that an error is of a code.
func wantsCode(t *testing.T, what string, err error, code wire.Code) {
	t.Helper()
	if e := (*client.SendError)(nil); !errors.As(err, &e) || e.Code != string(code) || e.Detail == "" {
		t.Errorf("%s: %v, want the code %s", what, err, code)
	}
}

// usersOf returns a user of each node.
func usersOf(t *testing.T, l *locatorProc, nodes []*nodeProc) (out []string) {
	t.Helper()
	for _, n := range nodes {
		out = append(out, userOf(t, l, n.id))
	}
	return out
}

// Users send to each other, over nodes, where their token allows it: stored, from set
// by the node, answered with the number.
func TestSendToUser(t *testing.T) {
	t.Parallel()
	l, nodes := threeNodes(t)
	users := usersOf(t, l, nodes)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	alice, bob := talk(t, users[0], []string{users[1], users[2]}, l), talk(t, users[1], nil, l)
	for i := range uint64(3) {
		r, err := alice.Send(ctx, users[1], map[string]uint64{"n": i})
		if err != nil || !r.Stored || r.Seq != i+1 || r.Delivered != 1 || r.ID == "" {
			t.Fatalf("send %d: %+v, %v", i, r, err)
		}
		m := await(t, "bob gets it", bob.got)
		if m.From != users[0] || m.Seq != r.Seq || m.ID != r.ID || string(m.Data) != fmt.Sprintf(`{"n":%d}`, i) {
			t.Errorf("bob got %+v of %+v", m, r)
		}
	}
	// Who is away gets it later, with the sender's name.
	if r, err := alice.Send(ctx, users[2], "later"); err != nil || r.Delivered != 0 || r.Seq != 1 {
		t.Errorf("to one who is away: %+v, %v", r, err)
	}
	carol := dialSince(t, l, users[2], "late", "0")
	if m := carol.message(t, 1, `"later"`); m.From != users[0] {
		t.Errorf("carol got %+v", m)
	}
	if r, err := alice.Send(ctx, users[1], "now", client.Ephemeral()); err != nil || r.Stored || r.Seq != 0 || r.Delivered != 1 {
		t.Errorf("ephemeral: %+v, %v", r, err)
	}
	if m := await(t, "bob gets the ephemeral one", bob.got); m.Seq != 0 || m.From != users[0] {
		t.Errorf("bob got %+v", m)
	}
	// A key makes it one message, and is of this sender's only.
	first, err := alice.Send(ctx, users[1], "once", client.IdempotencyKey("k"))
	again, err2 := alice.Send(ctx, users[1], "once", client.IdempotencyKey("k"))
	if err != nil || err2 != nil || again.Seq != first.Seq || !again.Duplicate || again.ID != first.ID {
		t.Errorf("a repeat: %+v %v, then %+v %v", first, err, again, err2)
	}
	_, err = alice.Send(ctx, users[1], "other", client.IdempotencyKey("k"))
	wantsCode(t, "another message with the key", err, wire.CodeKeyReused)
	await(t, "bob gets it", bob.got)
	service := l.keep(t, users[1], `"a service's"`)
	if m := await(t, "bob gets it", bob.got); m.Seq != service.Seq || m.From != "" || service.Seq != first.Seq+1 {
		t.Errorf("after a repeat and a refused one: %+v, %+v", m, service)
	}
	_, err = bob.Send(ctx, users[0], "no")
	wantsCode(t, "without a claim", err, wire.CodeForbidden)
	_, err = alice.Send(ctx, users[1]+"x", "no")
	wantsCode(t, "to one beyond the claim", err, wire.CodeForbidden)
	_, err = alice.Request(ctx, "hello")
	wantsCode(t, "without an application", err, wire.CodeNoApplication)
}

// A raw client: every send is answered with its ref, whatever is wrong with it, and
// the connection stays.
func TestSendFrames(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "ws-1", l.nats, "DIALRING_SEND_RATE=5")
	l.waitMembers(t, "ws-1")
	loc := l.locate(t, "alice", `{"device":"a"}`)
	if status, b := call(t, "POST", "http://"+l.addr+"/v1/locate?user=alice&send_to=bob,team-*", `{"device":"a"}`); status != 200 || json.Unmarshal(b, &loc) != nil {
		t.Fatalf("locate: %d %s", status, b)
	}
	b := dialLocated(t, loc)
	for _, c := range []struct {
		frame any
		code  wire.Code // "": accepted
	}{
		{map[string]any{"type": "send", "ref": 1, "to": "bob", "data": 1}, ""},
		{map[string]any{"type": "send", "ref": "x", "to": "team-7", "data": nil}, ""},
		{map[string]any{"type": "send", "ref": "f", "to": "bob", "data": 1, "from": "eve"}, ""}, // an unknown field
		{map[string]any{"type": "send", "ref": 2, "to": "team", "data": 1}, wire.CodeForbidden},
		{map[string]any{"type": "send", "ref": 3, "to": "Bob", "data": 1}, wire.CodeForbidden},
		{map[string]any{"type": "send", "ref": 4, "to": "bob"}, wire.CodeInvalidRequest},
		{map[string]any{"type": "send", "ref": 5, "to": 7, "data": 1}, wire.CodeInvalidRequest},
		{map[string]any{"type": "send", "ref": 6, "to": "\x01", "data": 1}, wire.CodeInvalidRequest},
		{map[string]any{"type": "send", "ref": 7, "data": 1}, wire.CodeNoApplication},
		{map[string]any{"type": "send", "ref": 8, "data": 1, "ephemeral": true}, wire.CodeNoApplication},
		{map[string]any{"type": "send", "to": "bob", "data": 1}, ""},
	} {
		b.write(t, c.frame)
		answer := b.text(t)
		var f struct {
			Type string
			Ref  json.RawMessage
			Code wire.Code
			Seq  uint64
		}
		want, _ := json.Marshal(c.frame.(map[string]any)["ref"])
		if string(want) == "null" {
			want = nil
		}
		if err := json.Unmarshal([]byte(answer), &f); err != nil || f.Code != c.code || string(f.Ref) != string(want) || (c.code == "") != (f.Type == "ack" && f.Seq > 0) {
			t.Errorf("%v was answered %s", c.frame, answer)
		}
	}
	// Too many of them are refused, one by one, and the connection stays.
	limited := false
	for i := 0; i < 40 && !limited; i++ {
		b.write(t, map[string]any{"type": "send", "ref": i, "to": "bob", "data": i})
		limited = strings.Contains(b.text(t), string(wire.CodeRateLimited))
	}
	if !limited {
		t.Error("40 sends at once were all accepted, at a rate of 5 a second")
	}
	if status, body := call(t, "POST", "http://"+l.addr+"/v1/locate?user=alice&send_to="+strings.Repeat("longlonglonglong,", 60)+"x", ""); status != 400 || !strings.Contains(string(body), "send_to") {
		t.Errorf("a claim that fits into no ticket: %d %s", status, body)
	}
}

// The sender's node is killed, and the receiver's, while messages are sent: what was
// accepted arrives, in order, once.
func TestSendAcrossCrashes(t *testing.T) {
	t.Parallel()
	l, nodes := threeNodes(t)
	users := usersOf(t, l, nodes)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	alice, bob := talk(t, users[0], []string{"*"}, l), talk(t, users[1], nil, l)
	const n = 300
	sent := make(chan error, 1)
	var under atomic.Int64
	go func() {
		for i := range n {
			for {
				_, err := alice.Send(ctx, users[1], i, client.IdempotencyKey(fmt.Sprint("n", i)))
				if err == nil {
					break
				}
				if e := (*client.SendError)(nil); !errors.As(err, &e) || ctx.Err() != nil {
					sent <- fmt.Errorf("send %d: %w", i, err)
					return
				}
			}
			under.Store(int64(i))
		}
		sent <- nil
	}()
	eventually(t, "some are sent", func() bool { return under.Load() > 50 })
	nodes[0].kill()
	eventually(t, "more are sent", func() bool { return under.Load() > 150 })
	nodes[1].kill()
	if err := await(t, "all are sent", sent); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if m := await(t, fmt.Sprint("message ", i), bob.got); string(m.Data) != fmt.Sprint(i) || m.Seq != uint64(i+1) {
			t.Fatalf("message %d is %s with number %d", i, m.Data, m.Seq)
		}
	}
}

// An application behind a webhook: it answers, refuses, fails and recovers, is slow,
// and away.
func TestWebhook(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef0123456789abcdef"
	var mu sync.Mutex
	seen := map[string]int{} // by id and data
	slow := make(chan struct{})
	hook := client.Webhook(secret, func(ctx context.Context, m client.Sent) (any, error) {
		mu.Lock()
		seen[m.ID+" "+string(m.Data)]++
		times := seen[m.ID+" "+string(m.Data)]
		mu.Unlock()
		switch string(m.Data) {
		case `"refuse"`:
			return nil, &client.RefusedError{Detail: "not today"}
		case `"fail once"`:
			if times == 1 {
				return nil, errors.New("broken")
			}
			return times, nil
		case `"nothing"`:
			return nil, nil
		case `"slow"`:
			select {
			case <-slow:
			case <-ctx.Done():
			}
			return "late", nil
		}
		return map[string]any{"user": m.User, "device": m.Device, "node": m.Node, "session": m.Session != "", "data": m.Data}, nil
	})
	s := httptest.NewServer(hook)
	defer s.Close()
	defer close(slow)
	c := startNormal(t, 1, "DIALRING_APP="+s.URL, "DIALRING_APP_SECRET="+secret, "DIALRING_APP_TIMEOUT=2s")
	alice := talk(t, "alice", nil, c.l)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if b, err := alice.Request(ctx, "who am I"); err != nil || !strings.Contains(string(b), `"user":"alice"`) || !strings.Contains(string(b), `"session":true`) || !strings.Contains(string(b), `"data":"who am I"`) || !strings.Contains(string(b), alice.Device()) {
		t.Errorf("answered %s, %v", b, err)
	}
	if b, err := alice.Request(ctx, "nothing"); err != nil || b != nil {
		t.Errorf("nothing: %s, %v", b, err)
	}
	if b, err := alice.Request(ctx, "fail once"); err != nil || string(b) != "2" {
		t.Errorf("one that fails first is asked again with the same id: %s, %v", b, err)
	}
	_, err := alice.Request(ctx, "refuse")
	wantsCode(t, "refused", err, wire.CodeInvalidRequest)
	if err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("refused: %v", err)
	}
	_, err = alice.Request(ctx, "slow")
	wantsCode(t, "slow", err, wire.CodeNoApplication)
	s.CloseClientConnections()
	s.Listener.Close()
	_, err = alice.Request(ctx, "away")
	wantsCode(t, "away", err, wire.CodeNoApplication)
	// Nobody else is believed.
	for _, sig := range []string{"", "t=1,v1=00", wire.SignWebhook([]byte("another secret"), []byte(`{}`), time.Now()), wire.SignWebhook([]byte(secret), []byte(`{}`), time.Now().Add(-time.Hour))} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(`{}`))
		r.Header.Set(wire.HeaderSignature, sig)
		w := httptest.NewRecorder()
		hook.ServeHTTP(w, r)
		if w.Code != 401 {
			t.Errorf("signature %q: %d", sig, w.Code)
		}
	}
}

// An application on NATS: two processes of it share the requests; nobody there; a
// refusal; silence.
func TestApplicationOnNATS(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "ws-1", l.nats, "DIALRING_APP=nats", "DIALRING_APP_TIMEOUT=1s", "DIALRING_SEND_RATE=1000")
	l.waitMembers(t, "ws-1")
	alice := talk(t, "alice", nil, l)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := alice.Request(ctx, 1)
	wantsCode(t, "nobody is there", err, wire.CodeNoApplication)
	nc, err := nats.Connect(l.nats)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var calls [2]atomic.Int64
	for i := range calls {
		if _, err := nc.QueueSubscribe("dialring.app", "workers", func(m *nats.Msg) {
			calls[i].Add(1)
			in, err := client.ParseSent(m.Data)
			switch {
			case err != nil || in.User != "alice" || in.ID == "":
				t.Errorf("the application got %s: %v", m.Data, err)
			case string(in.Data) == `"refuse"`:
				_ = m.RespondMsg(&nats.Msg{Header: nats.Header{wire.HeaderError: {"not you"}}})
			case string(in.Data) == `"silence"`:
			case string(in.Data) == `"rubbish"`:
				_ = m.Respond([]byte("{"))
			default:
				_ = m.Respond(in.Data)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if b, err := alice.Request(ctx, i); err != nil || string(b) != fmt.Sprint(i) {
			t.Fatalf("%d was answered %s, %v", i, b, err)
		}
	}
	if a, b := calls[0].Load(), calls[1].Load(); a+b != 50 || a == 0 || b == 0 {
		t.Errorf("the two processes got %d and %d of 50", a, b)
	}
	_, err = alice.Request(ctx, "refuse")
	wantsCode(t, "refused", err, wire.CodeInvalidRequest)
	_, err = alice.Request(ctx, "silence")
	wantsCode(t, "silence", err, wire.CodeNoApplication)
	_, err = alice.Request(ctx, "rubbish")
	wantsCode(t, "rubbish", err, wire.CodeInternal)
}

// An application that reads a stream: what was acknowledged is there, once.
func TestApplicationOnJetStream(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "ws-1", l.nats, "DIALRING_APP=jetstream")
	l.waitMembers(t, "ws-1")
	alice := talk(t, "alice", nil, l)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range 3 {
		if b, err := alice.Request(ctx, i); err != nil || string(b) != fmt.Sprintf(`{"seq":%d}`, i+1) {
			t.Fatalf("%d: %s, %v", i, b, err)
		}
	}
	nc, err := nats.Connect(l.nats)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	cons, err := js.CreateConsumer(ctx, "dialring_app", jetstream.ConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := cons.Fetch(3)
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for m := range got.Messages() {
		if in, err := client.ParseSent(m.Data()); err != nil || in.User != "alice" || string(in.Data) != fmt.Sprint(i) {
			t.Errorf("message %d is %s, %v", i, m.Data(), err)
		}
		i++
	}
	if i != 3 {
		t.Errorf("%d messages are in the stream", i)
	}
}

// rawSend writes sends of one connection and reads their answers, by ref.
func rawSends(t *testing.T, b *bare, frames ...map[string]any) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, f := range frames {
		b.write(t, f)
	}
	for len(out) < len(frames) {
		text := b.text(t)
		var f struct {
			Ref  json.RawMessage
			Type string
		}
		if json.Unmarshal([]byte(text), &f) == nil && (f.Type == "ack" || f.Type == "error") {
			out[string(f.Ref)] = text
		}
	}
	return out
}

// Whatever one session asks of an application that fails, others are answered; the
// status says whose fault it is; what was pushed as it is arrives as it is.
func TestWebhookUnderFailures(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef0123456789abcdef"
	var bad atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		in, err := client.ParseSent(b)
		if err != nil || r.Header.Get("Idempotency-Key") != in.ID || wire.CheckWebhook([]byte(secret), r.Header.Get(wire.HeaderSignature), b, time.Now(), time.Minute) != nil {
			t.Errorf("the webhook got %s %v", b, r.Header)
		}
		switch {
		case in.User == "mallory":
			bad.Add(1)
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		case strings.HasPrefix(string(in.Data), `{"status":`):
			var d struct{ Status int }
			_ = json.Unmarshal(in.Data, &d)
			w.WriteHeader(d.Status)
		default:
			_, _ = w.Write(in.Data)
		}
	}))
	defer s.Close()
	l := startLocator(t)
	startNode(t, "ws-1", l.nats, "DIALRING_APP="+s.URL, "DIALRING_APP_SECRET="+secret, "DIALRING_APP_TIMEOUT=1500ms", "DIALRING_APP_CONCURRENCY=4", "DIALRING_SEND_RATE=100")
	l.waitMembers(t, "ws-1")
	mallory := dialBare(t, l, "mallory")
	for i := range 60 {
		mallory.write(t, map[string]any{"type": "send", "ref": i, "data": 1})
	}
	eventually(t, "the application is busy with one", func() bool { return bad.Load() > 0 })
	alice := talk(t, "alice", nil, l)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	const odd = `{"a" : "<\u0041&>", "n":1.0}`
	if b, err := alice.Request(ctx, json.RawMessage(odd)); err != nil || string(b) != odd {
		t.Errorf("answered %s, %v", b, err)
	}
	for status, code := range map[int]wire.Code{400: wire.CodeInvalidRequest, 422: wire.CodeInvalidRequest, 401: wire.CodeNoApplication, 404: wire.CodeNoApplication, 503: wire.CodeNoApplication, 302: wire.CodeNoApplication} {
		_, err := alice.Request(ctx, map[string]int{"status": status})
		wantsCode(t, fmt.Sprint("status ", status), err, code)
	}
}

// What is kept for the application is kept in order, and once for each id and content;
// and when nobody asks for a stream any more it does not answer for the application.
func TestApplicationKeptInOrder(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	first := startNode(t, "ws-1", l.nats, "DIALRING_APP=jetstream", "DIALRING_SEND_RATE=1000")
	l.waitMembers(t, "ws-1")
	b := dialBare(t, l, "alice")
	var frames []map[string]any
	for i := range 60 {
		frames = append(frames, map[string]any{"type": "send", "ref": i, "data": i})
	}
	for ref, text := range rawSends(t, b, frames...) {
		var a struct{ Data struct{ Seq int } }
		if err := json.Unmarshal([]byte(text), &a); err != nil || fmt.Sprint(a.Data.Seq-1) != ref {
			t.Errorf("%s was answered %s", ref, text)
		}
	}
	got := rawSends(t, b, map[string]any{"type": "send", "ref": 1, "id": "k", "data": 1}, map[string]any{"type": "send", "ref": 2, "id": "k", "data": 1}, map[string]any{"type": "send", "ref": 3, "id": "k", "data": 2})
	if strings.Contains(got["1"], "duplicate") || !strings.Contains(got["2"], `"duplicate":true`) || !strings.Contains(got["2"], `"seq":61`) || !strings.Contains(got["3"], `"seq":62`) {
		t.Errorf("repeats were answered %v", got)
	}
	if code := first.term(t); code != 0 {
		t.Fatalf("the node ended with %d", code)
	}
	startNode(t, "ws-1", l.nats, "DIALRING_APP=nats")
	l.waitMembers(t, "ws-1")
	alice := talk(t, "alice", nil, l)
	_, err := alice.Request(t.Context(), 1)
	wantsCode(t, "with a stream, and nobody there", err, wire.CodeNoApplication)
}

// Who was kicked and keeps the connection open sends nothing any more.
func TestSendAfterKick(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	n := startNode(t, "ws-1", l.nats, "DIALRING_APP=jetstream")
	l.waitMembers(t, "ws-1")
	b := dialBare(t, l, "alice")
	if got := rawSends(t, b, map[string]any{"type": "send", "ref": 1, "data": 1}); !strings.Contains(got["1"], `"ack"`) {
		t.Fatal(got)
	}
	if k := l.kick(t, "alice", ""); k != 1 {
		t.Fatalf("%d were kicked", k)
	}
	for range 20 {
		b.write(t, map[string]any{"type": "send", "data": 2})
	}
	if code := b.closeCode(t); code != 4002 {
		t.Errorf("closed with %d", code)
	}
	other := dialBare(t, l, "bob") // behind all that was read of the other
	if got := rawSends(t, other, map[string]any{"type": "send", "ref": 1, "data": 3}); !strings.Contains(got["1"], `"seq":2`) {
		t.Errorf("bob's is not the second message: %v", got)
	}
	if v := n.metric(t, `dialring_sends_total{result="ok",target="application"}`); v != 2 {
		t.Errorf("%v sends were accepted", v)
	}
}
