package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// script is what a made-up node sends on one connection after another: texts of
// frames; each connection ends behind its last one.
type wireScript [][]string

func welcomeText(since string, head, pending int, gap bool) string {
	return fmt.Sprintf(`{"type":"welcome","session":"s","since":%q,"head":%d,"pending":%d,"gap":%v}`, since, head, pending, gap)
}

func messageText(seq int) string {
	return fmt.Sprintf(`{"type":"message","id":"m%d","seq":%d,"cursor":"c%d","data":%d}`, seq, seq, seq, seq)
}

// play has a wireClient meet a script, and returns what it found fault with and
// what it got.
func play(t *testing.T, s wireScript) (findings string, got []uint64, since []string) {
	t.Helper()
	var mu sync.Mutex
	n := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	defer srv.Close()
	mux.HandleFunc("/v1/locate", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		over := n == len(s)
		mu.Unlock()
		if over {
			cancel()
		}
		_ = json.NewEncoder(w).Encode(wire.LocateResponse{Node: "n", URL: "ws" + strings.TrimPrefix(srv.URL, "http") + "/v1/ws", Ticket: "t"})
	})
	mux.HandleFunc("/v1/ws", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if n == len(s) {
			mu.Unlock()
			return
		}
		frames := s[n]
		n++
		since = append(since, r.URL.Query().Get("since"))
		mu.Unlock()
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		for _, f := range frames {
			if f == "close 4101" {
				_, _ = c.Write([]byte{0x88, 2, 4101 >> 8, 4101 & 0xff})
				continue
			}
			_, _ = c.Write(append([]byte{0x81, 126, byte(len(f) >> 8), byte(len(f))}, f...))
		}
	})
	w := &wireClient{user: "alice", locators: []string{srv.URL}, got: func(_ string, num uint64) { got = append(got, num) }}
	w.run(ctx)
	return w.report(), got, since
}

// The client on the wire finds each mistake, and none where there is none.
func TestWireClientFinds(t *testing.T) {
	for name, c := range map[string]struct {
		script wireScript
		says   string // "": no fault
	}{
		"clean": {wireScript{{welcomeText("0", 2, 2, false), messageText(1), messageText(2), messageText(3)},
			{welcomeText("c3", 4, 1, false), messageText(4), messageText(5)}}, ""},
		"hole":                {wireScript{{welcomeText("0", 0, 0, false), messageText(1), messageText(3)}}, "message 3"},
		"hole over reconnect": {wireScript{{welcomeText("0", 1, 1, false), messageText(1)}, {welcomeText("c1", 3, 0, false), messageText(4)}}, "message 4"},
		"repeat":              {wireScript{{welcomeText("0", 0, 0, false), messageText(1), messageText(1)}}, "message 1"},
		"repeat after resume": {wireScript{{welcomeText("0", 2, 2, false), messageText(1), messageText(2)}, {welcomeText("c2", 2, 0, false), messageText(2)}}, "message 2"},
		"swapped":             {wireScript{{welcomeText("0", 0, 0, false), messageText(2), messageText(1)}}, "message 2"},
		"gap":                 {wireScript{{welcomeText("0", 5, 1, true), messageText(5)}}, `"gap":true`},
		"no since":            {wireScript{{welcomeText("", 0, 0, false)}}, "was welcomed by"},
		"too few pending":     {wireScript{{welcomeText("0", 1, 2, false), messageText(1), messageText(2)}}, "1 pending messages"},
		"skipped":             {wireScript{{welcomeText("0", 0, 0, false), `{"type":"skip","to":2,"reason":"limit"}`}}, "skip"},
		"closed":              {wireScript{{welcomeText("0", 0, 0, false), "close 4101"}}, "closed with 4101"},
	} {
		t.Run(name, func(t *testing.T) {
			findings, got, since := play(t, c.script)
			if c.says == "" && findings != "" || !strings.Contains(findings, c.says) {
				t.Errorf("it found %q, want %q", findings, c.says)
			}
			if name == "clean" && (fmt.Sprint(got) != "[1 2 3 4 5]" || fmt.Sprint(since) != "[0 c3]") {
				t.Errorf("it got %v, and dialed since %v", got, since)
			}
		})
	}
}
