package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

func TestReceive(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	cfg := f.config()
	cfg.Device = "" // one is made up
	r := start(t, cfg)
	call := recv(t, f.locates, "a locate")
	if call.method != "POST" || call.user != "alice" || call.auth != "" || len(call.Failed) != 0 {
		t.Errorf("locate: %+v", call)
	}
	if err := wire.CheckDevice(call.Device); err != nil || call.Device != r.Device() {
		t.Errorf("device %q, and Device() says %q: %v", call.Device, r.Device(), err)
	}
	s := recv(t, f.sessions, "a dial")
	if p, a := s.req.Header.Get("Sec-WebSocket-Protocol"), s.req.Header.Get("Authorization"); p != "dialring.v1" || a != "Bearer ticket-1" {
		t.Errorf("the dial offers %q with authorization %q", p, a)
	}
	if strings.Contains(s.req.URL.String(), "ticket-1") {
		t.Errorf("the ticket is in the URL %s", s.req.URL)
	}
	s.welcome(20_000)
	s.text(`{"type":"message","id":"m1","time":"2026-01-02T03:04:05.678Z","from":"bob","seq":7,"cursor":"c7","data":{"a":1},"later":[]}`)
	m := recv(t, r.messages, "the message")
	if m.ID != "m1" || m.From != "bob" || m.Seq != 7 || !m.JSON || string(m.Data) != `{"a":1}` ||
		!m.Time.Equal(time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)) {
		t.Errorf("message %+v", m)
	}
	var v struct{ A int }
	if err := m.Unmarshal(&v); err != nil || v.A != 1 {
		t.Errorf("Unmarshal: %+v %v", v, err)
	}
	if st := r.State(); st.State != Connected || st.Node != "ws-1" || st.Session != "s-1" || st.Err != nil {
		t.Errorf("State() is %+v", st)
	}
}

func TestPayloads(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial").welcome(20_000)
	// A payload arrives as it was pushed: nothing is encoded anew.
	for i, data := range []string{
		`null`, `0`, `-0.0`, `1.0`, `1e400`, `123456789012345678901234567890`, `""`, `"\u00e9é\/<>&\u003c"`, `[]`, `{"z":1, "a" :2,"z":3}`, `"😀\ud83d\ude00"`,
	} {
		s.message(fmt.Sprint("j", i), data)
		if m := recv(t, r.messages, data); !m.JSON || string(m.Data) != data {
			t.Errorf("%s came as %q, JSON %t", data, m.Data, m.JSON)
		}
	}
	for b64, data := range map[string]string{"": "", "AP8K": "\x00\xff\n", "eyJhIjoxfQ==": `{"a":1}`} {
		s.text(fmt.Sprintf(`{"type":"message","id":%q,"time":"2026-01-02T03:04:05Z","data_b64":%q}`, "b"+b64, b64))
		m := recv(t, r.messages, b64)
		if m.JSON || string(m.Data) != data {
			t.Errorf("data_b64 %q came as %q, JSON %t", b64, m.Data, m.JSON)
		}
		if m.Unmarshal(new(any)) == nil {
			t.Errorf("data_b64 %q could be unmarshalled", b64)
		}
	}
}

// Unknown frame types and fields are ignored, and so are binary frames.
func TestUnknownFrames(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial").welcome(20_000)
	s.text(`{"type":"from-the-future","data":1}`)
	s.text(`{}`)
	s.text(`{"type":"skip","to":5,"reason":"limit"}`)
	s.raw(frame(opBinary, []byte(`{"type":"message","id":"binary","data":1}`)))
	s.message("m1", `1`)
	if m := recv(t, r.messages, "the message"); m.ID != "m1" {
		t.Errorf("message %+v", m)
	}
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial").welcome(20_000)
	s.message("m1", `1`)
	s.message("m1", `1`)
	s.message("m2", `2`)
	s.close(wire.CloseMoved, "moved")
	s = recv(t, f.sessions, "a second dial").welcome(20_000)
	s.message("m2", `2`) // both connections had it
	s.message("m3", `3`)
	for _, id := range []string{"m1", "m2", "m3"} {
		if m := recv(t, r.messages, id); m.ID != id {
			t.Errorf("%s came, want %s", m.ID, id)
		}
	}
}

func TestSeen(t *testing.T) {
	var s seen
	for i := range 3 * seenSize {
		if s.has(fmt.Sprint(i)) {
			t.Fatalf("%d is new", i)
		}
		s.add(fmt.Sprint(i))
		if back := max(0, i-seenSize+1); !s.has(fmt.Sprint(back)) {
			t.Fatalf("%d was forgotten after %d others", back, i-back)
		}
	}
	if len(s.ids) != seenSize {
		t.Errorf("%d ids are kept, want %d", len(s.ids), seenSize)
	}
	if s.add(""); s.has("") {
		t.Error("messages without an id are no duplicates")
	}
}

// A message whose handler never got it is not a duplicate when it comes again.
func TestSeenOnlyWhenHandedOn(t *testing.T) {
	c, err := New(Config{Locators: []string{"http://127.0.0.1:1"}, User: "alice", OnMessage: func(context.Context, Message) {}})
	if err != nil {
		t.Fatal(err)
	}
	b := []byte(`{"type":"message","id":"m1","time":"2026-01-02T03:04:05Z","data":1}`)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	(&receiver{c: c, ctx: ended, queue: make(chan queued)}).frame(ended, &conn{welcomed: true}, b) // Run ends while the queue is full
	queue := make(chan queued, 1)                                                                  // the next Run
	(&receiver{c: c, ctx: t.Context(), queue: queue}).frame(t.Context(), &conn{welcomed: true}, b)
	if len(queue) != 1 {
		t.Error("the message was dropped as a duplicate, but no handler ever had it")
	}
}

// While OnMessage blocks, the node cannot send more than the buffers between
// them hold; afterwards every message comes, in order.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	release, ids := make(chan struct{}), make(chan string, 4096)
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	var active atomic.Int32
	cfg := f.config()
	cfg.QueueSize = 2
	cfg.OnMessage = func(_ context.Context, m Message) {
		if active.Add(1) != 1 {
			t.Error("OnMessage is called twice at once")
		}
		<-release
		ids <- m.ID
		active.Add(-1)
	}
	r := start(t, cfg)
	s := recv(t, f.sessions, "a dial").welcome(20_000)
	const n = 256
	var all []byte
	data := `"` + strings.Repeat("x", 64<<10) + `"`
	for i := range n {
		all = append(all, frame(opText, fmt.Appendf(nil, `{"type":"message","id":"m%d","time":"2026-01-02T03:04:05Z","data":%s}`, i, data))...)
	}
	for {
		_ = s.nc.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		k, err := s.nc.Write(all)
		if all = all[k:]; len(all) == 0 {
			t.Error("the client took everything although OnMessage blocks")
			break
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if k == 0 {
			break // nothing more goes out
		}
	}
	free()
	_ = s.nc.SetWriteDeadline(time.Now().Add(hang))
	s.raw(all)
	for i := range n {
		if id := recv(t, ids, "a message"); id != fmt.Sprint("m", i) {
			t.Fatalf("%s came, want m%d", id, i)
		}
	}
	if st := r.State(); st.State != Connected {
		t.Errorf("State() is %+v", st)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{tls: true})
	cfg := f.config()
	cfg.HTTP = f.srv.Client()
	r := start(t, cfg) // the certificate is not known yet
	if e := r.await(Dialing); e.Err != nil {
		t.Errorf("%+v", e)
	}
	var unknown *tls.CertificateVerificationError
	if e := r.await(Locating); !errors.As(e.Err, &unknown) {
		t.Errorf("with an unknown certificate: %v", e.Err)
	}
	r.cancel()
	_ = r.result()

	pool := x509.NewCertPool()
	pool.AddCert(f.srv.Certificate())
	cfg.TLS = &tls.Config{RootCAs: pool}
	r = start(t, cfg)
	recv(t, f.sessions, "a dial").welcome(20_000).message("m1", `1`)
	if m := recv(t, r.messages, "the message"); m.ID != "m1" {
		t.Errorf("message %+v", m)
	}
	if cfg.TLS.ServerName != "" || cfg.TLS.NextProtos != nil {
		t.Error("the caller's TLS settings were changed")
	}
}

func TestBadConfig(t *testing.T) {
	good := func() Config {
		return Config{Locators: []string{"https://push.example.com/"}, User: "alice", OnMessage: func(context.Context, Message) {}}
	}
	if _, err := New(good()); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	for name, edit := range map[string]func(*Config){
		"locator":        func(c *Config) { c.Locators = nil },
		"ws://x":         func(c *Config) { c.Locators = []string{"https://a", "ws://x"} },
		"push.example":   func(c *Config) { c.Locators = []string{"push.example"} },
		"https://x?a=b":  func(c *Config) { c.Locators = []string{"https://x?a=b"} },
		"https://x#a":    func(c *Config) { c.Locators = []string{"https://x#a"} },
		"https://":       func(c *Config) { c.Locators = []string{"https://"} },
		"OnMessage":      func(c *Config) { c.OnMessage = nil },
		"Token and User": func(c *Config) { c.Token = StaticToken("t") },
		"one of Token":   func(c *Config) { c.User = "" },
		"Config.User":    func(c *Config) { c.User = strings.Repeat("x", 129) },
		"control":        func(c *Config) { c.User = "a\n" },
		"Config.Device":  func(c *Config) { c.Device = "my phone" },
	} {
		cfg := good()
		edit(&cfg)
		if c, err := New(cfg); err == nil || c != nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}

func TestUnmarshalError(t *testing.T) {
	m := Message{Data: []byte(`{"a":"x"}`), JSON: true}
	var v struct{ A int }
	var typed *json.UnmarshalTypeError
	if err := m.Unmarshal(&v); !errors.As(err, &typed) {
		t.Errorf("%v", err)
	}
}
