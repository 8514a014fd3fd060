package client

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
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
