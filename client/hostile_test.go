package client

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// rawNode listens and hands each connection to serve, n counting from 0. It
// returns the URL to dial.
func rawNode(t *testing.T, serve func(n int, nc net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns []net.Conn
	)
	wg.Go(func() {
		for n := 0; ; n++ {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, nc)
			mu.Unlock()
			wg.Go(func() {
				defer nc.Close()
				serve(n, nc)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, nc := range conns {
			_ = nc.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "ws://" + l.Addr().String() + "/v1/ws"
}

// sendTo has the first locate lead to url, later ones to the fake itself.
func sendTo(url string) func(*fake, int, locateCall) answer {
	return func(f *fake, n int, _ locateCall) answer {
		return f.here(func(l *wire.LocateResponse) {
			if n == 0 {
				l.Node, l.URL = "ws-bad", url
			}
		})
	}
}

// comesBack checks that the client is well: on its next connection a message comes.
func comesBack(t *testing.T, f *fake, r *running) {
	t.Helper()
	recv(t, f.sessions, "another dial").welcome(20_000).message("after", `1`)
	if m := recv(t, r.messages, "a message"); m.ID != "after" {
		t.Errorf("message %+v", m)
	}
}

func length(n uint64, opcode, mask byte) []byte {
	return binary.BigEndian.AppendUint64([]byte{0x80 | opcode, mask | 127}, n)
}

// Bytes that break RFC 6455 end the connection, with its codes where a frame
// can be told at all, and nothing else: the client comes back.
func TestHostileFrames(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		bytes []byte
		code  int // that the client closes with; 0: any
	}{
		"length with the top bit":         {append(length(1<<63, opText, 0), 0, 0, 0, 0), 0},
		"length with the top bit, masked": {append(length(1<<63, opText, 0x80), 1, 2, 3, 4), 0},
		"length of all ones":              {append(length(1<<64-1, opText, 0), 0, 0, 0, 0), 0},
		"ping with the top bit":           {append(length(1<<63, opPing, 0), 0, 0, 0, 0), 0},
		"length of half of all":           {append(length(1<<63-1, opText, 0), 0, 0, 0, 0), 1009},
		"a length just too big":           {length(maxFrame+1, opText, 0), 1009},
		"fragments that are too big":      {tooManyFragments(), 1009},
		"invalid UTF-8":                   {frame(opText, []byte("{\"type\":\"message\",\"data\":\"\xff\"}")), 1007},
		"a surrogate in UTF-8":            {frame(opText, []byte("{\"type\":\"message\",\"data\":\"\xed\xa0\x80\"}")), 1007},
		"masked":                          {[]byte{0x81, 0x82, 1, 2, 3, 4, '{' ^ 1, '}' ^ 2}, 1002},
		"reserved bits":                   {[]byte{0xc1, 0x02, '{', '}'}, 1002},
		"reserved opcode":                 {[]byte{0x8f, 0x00}, 1002},
		"continuation of nothing":         {[]byte{0x80, 0x02, '{', '}'}, 1002},
		"a text frame within another":     {[]byte{0x01, 0x01, '{', 0x81, 0x02, '{', '}'}, 1002},
		"fragmented ping":                 {[]byte{0x09, 0x00}, 1002},
		"long ping":                       {frame(opPing, make([]byte, 126)), 1002},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, script{})
			r := start(t, f.config())
			s := recv(t, f.sessions, "a dial").welcome(20_000)
			r.await(Connected)
			go s.raw(c.bytes) // it may be cut off in between
			if code := s.closeCode(); c.code != 0 && code != c.code {
				t.Errorf("the client closed with %d, want %d", code, c.code)
			}
			s.gone()
			comesBack(t, f, r)
			if st := r.State(); st.State != Connected {
				t.Errorf("State() is %+v", st)
			}
		})
	}
}

func tooManyFragments() []byte {
	part := frame(opText, make([]byte, 1<<20))
	part[0] = opText
	b := slices.Clone(part)
	part[0] = 0
	for range 3 {
		b = append(b, part...)
	}
	return b
}

// A close frame that breaks the rules is an end like any other.
func TestHostileCloseFrames(t *testing.T) {
	t.Parallel()
	for _, payload := range []string{"", "\x01", "\x00\x00", "\x03\xed", "\x03\xee", "\xff\xff", "\x03\xe8\xff\xfe", "\x10\x05" + strings.Repeat("x", 123)} {
		t.Run(fmt.Sprintf("%.4q", payload), func(t *testing.T) {
			t.Parallel()
			f := newFake(t, script{})
			r := start(t, f.config())
			s := recv(t, f.sessions, "a dial").welcome(20_000)
			s.raw(frame(opClose, []byte(payload)))
			s.gone()
			comesBack(t, f, r)
		})
	}
}

// Frames that no node sends do not end the connection, nor the client.
func TestFramesThatAreNotOfTheContract(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial").welcome(20_000)
	for _, text := range []string{
		``, ` `, `hello`, `{`, `[]`, `null`, `"message"`, `7`, `{"type":7}`, `{"type":"message"`, `{"type":"message","id":7}`,
		`{"type":"message","id":"x1","data_b64":"%%%"}`, `{"type":"message","id":"x2","time":"yesterday"}`,
		`{"type":"message","id":"x3","seq":-1}`, `{"type":"welcome","session":[]}`, `{"type":"move"}`,
		strings.Repeat(`[`, 100_000), `{"type":` + strings.Repeat(`{"a":`, 50_000),
	} {
		s.text(text)
	}
	s.message("good", `1`)
	for m := recv(t, r.messages, "the good message"); m.ID != "good"; m = recv(t, r.messages, "the good message") {
		if strings.HasPrefix(m.ID, "x") {
			t.Errorf("message %+v", m)
		}
	}
	if n := len(f.locates); n != 1 {
		t.Errorf("%d locates, want 1", n)
	}
}

// What a dial finds that is no node: the client locates again, and says that
// this node failed it.
func TestHostileHandshakes(t *testing.T) {
	t.Parallel()
	const head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
	for name, text := range map[string]string{
		"garbage":          strings.Repeat("\x00\xff garbage\r\n", 100),
		"nothing":          "",
		"half a line":      "HTTP/1.1 101",
		"no accept key":    head + "Sec-WebSocket-Protocol: dialring.v1\r\n\r\n",
		"wrong accept key": head + "Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\nSec-WebSocket-Protocol: dialring.v1\r\n\r\n",
		"no upgrade":       "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"SSH":              "SSH-2.0-OpenSSH_9.6\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, script{locate: sendTo(rawNode(t, func(_ int, nc net.Conn) {
				if _, err := http.ReadRequest(bufio.NewReader(nc)); err != nil {
					t.Errorf("the dial: %v", err)
				}
				_, _ = io.WriteString(nc, text)
			}))})
			r := start(t, f.config())
			recv(t, f.locates, "a locate")
			if call := recv(t, f.locates, "a second locate"); !slices.Equal(call.Failed, []string{"ws-bad"}) {
				t.Errorf("%v are reported as failed", call.Failed)
			}
			comesBack(t, f, r)
		})
	}
}

// Locators that answer what no locator does: the client tells, waits its back-off, and
// asks again, and neither its waits nor its memory are theirs to set.
func TestHostileLocators(t *testing.T) {
	t.Parallel()
	good := `{"user":"alice","device":"d","node":"ws-1","url":"URL","ticket":"t","dial_after_ms":0,"retry":{"base_ms":1,"max_ms":1}}`
	edit := func(from, to string) string { return strings.Replace(good, from, to, 1) }
	for name, x := range map[string]struct {
		body string
		good bool // it is taken all the same
	}{
		"nothing": {"", false}, "no JSON": {"<html>", false}, "null": {"null", false}, "an array": {"[]", false}, "half": {good[:40], false}, "deep": {strings.Repeat("[", 200_000), false},
		"too much": {`{"x":"` + strings.Repeat("x", 2<<20) + `"}`, false}, "no url": {edit(`"url"`, `"x"`), false}, "no ticket": {edit(`"ticket"`, `"x"`), false}, "a url of a number": {edit(`"URL"`, `7`), false},
		"a url of http": {edit("URL", "http://127.0.0.1:1/"), false}, "a url of a script": {edit("URL", "javascript:alert(1)"), false}, "a url without a host": {edit("URL", "ws://"), false}, "a url that is none": {edit("URL", "ws://[::1"), false},
		"a url of a file": {edit("URL", "file:///etc/passwd"), false}, "a port that is none": {edit("URL", "ws://127.0.0.1:99999/"), false},
		"a retry of 1e308": {edit(`"base_ms":1`, `"base_ms":1e308`), false}, "a retry of NaN": {edit(`"base_ms":1`, `"base_ms":NaN`), false},
		"a wait of 1e308": {edit(`"dial_after_ms":0`, `"dial_after_ms":1e308`), false}, "a wait of text": {edit(`"dial_after_ms":0`, `"dial_after_ms":"0"`), false},
		"a negative retry": {edit(`"base_ms":1,"max_ms":1`, `"base_ms":-1,"max_ms":-1`), true}, "a retry of 0": {edit(`"base_ms":1,"max_ms":1`, `"base_ms":0,"max_ms":0`), true},
		"a retry that shrinks": {edit(`"base_ms":1,"max_ms":1`, `"base_ms":9223372036854775807,"max_ms":1`), true}, "a negative wait": {edit(`"dial_after_ms":0`, `"dial_after_ms":-9223372036854775808`), true},
		"no retry": {edit(`"retry"`, `"x"`), true}, "a retry of null": {edit(`{"base_ms":1,"max_ms":1}`, `null`), true}, "unknown fields": {edit(`{"user"`, `{"a":{"b":[1]},"user"`), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
				if n == 0 {
					return answer{body: strings.Replace(x.body, "URL", f.ws, 1)}
				}
				return f.here()
			}})
			r := start(t, f.config())
			if !x.good {
				if e := r.await(Waiting); e.Err == nil || len(e.Err.Error()) > 500 {
					t.Errorf("it waits because of %.600v", e.Err)
				}
				recv(t, f.locates, "a locate")
				recv(t, f.locates, "a second locate")
			}
			comesBack(t, f, r)
		})
	}
	t.Run("a redirect in a circle", func(t *testing.T) {
		t.Parallel()
		var calls atomic.Int64
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) > 20 {
				t.Error("it goes round and round")
			}
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		})
		srv := httptest.NewServer(mux)
		defer srv.Close()
		r := start(t, Config{Locators: []string{srv.URL}, Token: func(context.Context) (string, error) { return "token", nil }, Device: "d"}, func(c *Client) { c.retry = wire.Retry{BaseMS: 3_600_000, MaxMS: 3_600_000} })
		if e := r.await(Waiting); e.Err == nil {
			t.Error("it waits without an error")
		}
	})
}

// A node that says what it must not, in an order that is none: the handler gets what came
// as it should, once.
func TestHostileOrder(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial")
	s.message("early", `1`)
	s.text(`{"type":"message","id":"early2","time":"2026-01-02T03:04:05Z","seq":1,"cursor":"c","data":1}`)
	s.text(`{"type":"skip","to":18446744073709551615,"reason":"limit"}`)
	s.text(`{"type":"resumed","since":"x","head":1,"gap":true}`)
	s.text(`{"type":"move","url":"ws://127.0.0.1:1/","ticket":"t","node":"ws-2","epoch":1,"reason":"x","after_ms":0,"deadline_ms":1}`)
	s.welcome(20_000)
	r.await(Connected)
	s.text(`{"type":"welcome","session":"another","user":"mallory","device":"x","node":"ws-9","epoch":9,"since":"zz","head":9,"pending":9,"gap":true,"ping_interval_ms":1,"max_message_bytes":1}`)
	for range 1000 {
		s.text(`{"type":"skip","to":5,"reason":"limit"}`)
		s.text(`{"type":"resumed","since":"0","head":0,"gap":false}`)
		s.text(`{"type":"ack","ref":"nobody's"}`)
		s.text(`{"type":"of-the-future","x":{}}`)
	}
	s.message("good", `1`)
	s.message("good", `2`)
	s.message("end", `3`)
	for _, want := range []string{"good", "end"} {
		if m := recv(t, r.messages, "a message"); m.ID != want {
			t.Errorf("message %+v, want %s", m, want)
		}
	}
	if st := r.State(); st.State != Connected || st.Session != "s-1" || st.Node != "ws-1" {
		t.Errorf("State() is %+v", st)
	}
	if n := len(f.locates); n != 1 {
		t.Errorf("%d locates, want 1", n)
	}
}
