package client

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// hang bounds every wait for something that has to come. It says nothing about
// how fast that must be.
const hang = 60 * time.Second

func recv[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(hang):
		t.Fatalf("%s did not come within %v", what, hang)
		panic("unreachable")
	}
}

// script says what a fake does; without one it sends clients to itself, and
// accepts each dial. n counts calls from 0.
type script struct {
	locate func(f *fake, n int, call locateCall) answer
	dial   func(f *fake, n int) *answer // nil: accepted
	tls    bool
}

type locateCall struct {
	wire.LocateRequest
	method, user, auth string
}

type answer struct {
	status     int // 0: 200
	retryAfter string
	body       any // a string as it is, anything else as JSON
}

func (a answer) write(w http.ResponseWriter) {
	b, ok := a.body.(string)
	if !ok {
		j, _ := json.Marshal(a.body)
		b = string(j)
	}
	w.Header().Set("Content-Type", "application/json")
	if a.retryAfter != "" {
		w.Header().Set("Retry-After", a.retryAfter)
	}
	if a.status != 0 {
		w.WriteHeader(a.status)
	}
	_, _ = io.WriteString(w, b)
}

func problem(status int, code wire.Code, retryAfter string) answer {
	return answer{status: status, retryAfter: retryAfter, body: wire.NewProblem(status, code, "says the fake")}
}

// fake is a locator and a node on one server.
type fake struct {
	t        *testing.T
	srv      *httptest.Server
	url, ws  string
	locates  chan locateCall // each, as it came
	sessions chan *session   // each accepted dial

	mu         sync.Mutex
	conns      []net.Conn
	located, n int
}

func newFake(t *testing.T, sc script) *fake {
	f := &fake{t: t, locates: make(chan locateCall, 1024), sessions: make(chan *session, 64)}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/locate", func(w http.ResponseWriter, r *http.Request) {
		call := locateCall{method: r.Method, user: r.URL.Query().Get("user"), auth: r.Header.Get("Authorization")}
		if err := json.NewDecoder(r.Body).Decode(&call.LocateRequest); err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("the body of a locate: %v", err)
		}
		f.mu.Lock()
		n := f.located
		f.located++
		f.mu.Unlock()
		f.locates <- call
		a := f.here()
		if sc.locate != nil {
			a = sc.locate(f, n, call)
		}
		a.write(w)
	})
	mux.HandleFunc("/v1/ws", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		n := f.n
		f.n++
		f.mu.Unlock()
		if sc.dial != nil {
			if a := sc.dial(f, n); a != nil {
				a.write(w)
				return
			}
		}
		nc, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Errorf("hijack: %v", err)
			return
		}
		f.mu.Lock()
		f.conns = append(f.conns, nc)
		f.mu.Unlock()
		f.sessions <- newSession(t, nc, rw.Reader, r)
	})
	f.srv = httptest.NewUnstartedServer(mux)
	f.srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of refused certificates
	if sc.tls {
		f.srv.StartTLS()
	} else {
		f.srv.Start()
	}
	f.url, f.ws = f.srv.URL, "ws"+strings.TrimPrefix(f.srv.URL, "http")+"/v1/ws"
	t.Cleanup(func() {
		f.mu.Lock()
		for _, nc := range f.conns {
			_ = nc.Close()
		}
		f.mu.Unlock()
		f.srv.Close()
	})
	return f
}

// here is the answer to a locate that sends the client to this fake.
func (f *fake) here(edit ...func(*wire.LocateResponse)) answer {
	l := wire.LocateResponse{User: "alice", Device: "d", Node: "ws-1", URL: f.ws, Ticket: "ticket-1",
		TicketExpiresInMS: 30_000, Retry: wire.Retry{BaseMS: 1, MaxMS: 1}}
	for _, e := range edit {
		e(&l)
	}
	return answer{body: l}
}

func (f *fake) config() Config {
	return Config{Locators: []string{f.url}, User: "alice", Device: "d"}
}

// session is the node's side of a connection, with frames written by hand.
type session struct {
	t   *testing.T
	nc  net.Conn
	br  *bufio.Reader
	req *http.Request // the dial
}

// newSession answers the upgrade.
func newSession(t *testing.T, nc net.Conn, br *bufio.Reader, r *http.Request) *session {
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	_, _ = fmt.Fprintf(nc, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: dialring.v1\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
	return &session{t: t, nc: nc, br: br, req: r}
}

const (
	opText, opBinary, opClose, opPing, opPong = 1, 2, 8, 9, 10
)

// frame is a server's frame: final, not masked.
func frame(op byte, payload []byte) []byte {
	b := []byte{0x80 | op}
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

// raw writes bytes; that they do not arrive is for the client to show.
func (s *session) raw(b []byte)       { _, _ = s.nc.Write(b) }
func (s *session) text(frames string) { s.raw(frame(opText, []byte(frames))) }

func (s *session) welcome(pingIntervalMS int) *session {
	s.text(fmt.Sprintf(`{"type":"welcome","session":"s-1","user":"alice","device":"d","node":"ws-1","epoch":1,"since":"0",`+
		`"head":0,"pending":0,"gap":false,"ping_interval_ms":%d,"max_message_bytes":65536}`, pingIntervalMS))
	return s
}

// message pushes the JSON data, ephemerally.
func (s *session) message(id, data string) {
	s.text(fmt.Sprintf(`{"type":"message","id":%q,"time":"2026-01-02T03:04:05.678Z","data":%s}`, id, data))
}

// close closes as a node does: the close frame, then, once the client has gone
// too, the connection.
func (s *session) close(code int, reason string) {
	s.raw(frame(opClose, append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...)))
	s.gone()
}

// gone waits until the client has closed the connection.
func (s *session) gone() {
	_ = s.nc.SetReadDeadline(time.Now().Add(hang))
	if _, err := io.Copy(io.Discard, s.br); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		s.t.Errorf("the client did not close its connection within %v", hang)
	}
	_ = s.nc.Close()
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// read returns the client's next frame.
func (s *session) read() (op byte, payload []byte, err error) {
	_ = s.nc.SetReadDeadline(time.Now().Add(hang))
	var h [2]byte
	if _, err := io.ReadFull(s.br, h[:]); err != nil {
		return 0, nil, err
	}
	n, rest := uint64(h[1]&0x7f), 0
	if n >= 126 {
		rest = map[uint64]int{126: 2, 127: 8}[n]
	}
	b := make([]byte, 8)
	if _, err := io.ReadFull(s.br, b[8-rest:]); err != nil {
		return 0, nil, err
	}
	if rest > 0 {
		n = binary.BigEndian.Uint64(b)
	}
	var mask [4]byte
	if h[1]&0x80 == 0 {
		s.t.Error("the client sent a frame that is not masked")
	} else if _, err := io.ReadFull(s.br, mask[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(s.br, payload)
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return h[0] & 0x0f, payload, err
}

// closeCode returns the code of the close frame that the client sends; 0: none.
func (s *session) closeCode() int {
	for {
		op, p, err := s.read()
		if err != nil {
			s.t.Logf("the client's close frame: %v", err)
			return 0
		}
		if op == opClose && len(p) >= 2 {
			return int(binary.BigEndian.Uint16(p))
		}
	}
}

// running is a Client within Run.
type running struct {
	moving atomic.Int64 // events of that state
	*Client
	t        *testing.T
	cancel   context.CancelFunc
	events   chan Event
	messages chan Message
	done     chan struct{}
	err      error
}

// start runs a client until the test ends. Its back-off is a millisecond at
// most, until a locator says otherwise.
func start(t *testing.T, cfg Config, edit ...func(*Client)) *running {
	t.Helper()
	r := &running{t: t, events: make(chan Event, 4096), messages: make(chan Message, 4096)}
	if cfg.OnMessage == nil {
		cfg.OnMessage = func(_ context.Context, m Message) { r.messages <- m }
	}
	cfg.OnEvent = func(e Event) {
		if e.State == Moving { // beside the others
			r.moving.Add(1)
			return
		}
		r.events <- e
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.retry = wire.Retry{BaseMS: 1, MaxMS: 1}
	for _, e := range edit {
		e(c)
	}
	r.Client = c
	r.again()
	t.Cleanup(func() {
		r.cancel()
		_ = r.result()
	})
	return r
}

// again runs the client, once more after it has stopped.
func (r *running) again() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		r.err = r.Run(ctx)
	}(r.done)
}

// result is what Run returned.
func (r *running) result() error {
	r.t.Helper()
	recv(r.t, r.done, "the end of Run")
	return r.err
}

// await skips events up to one of a state.
func (r *running) await(s State) Event {
	r.t.Helper()
	for {
		if e := recv(r.t, r.events, "the event "+s.String()); e.State == s {
			return e
		}
	}
}

// closedAddr is a host and port where nobody listens, nor will as long as the
// test runs: the local end of a connection.
func closedAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return nc.LocalAddr().String()
}
