package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

func TestInprocWelcome(t *testing.T) {
	c := inprocStart(t, locator.Config{}, wsnode.Config{MaxMessageBytes: 12345})
	w := c.connect("alice", "web-1")
	var fields map[string]json.RawMessage
	inprocDecode(t, w.welcomeRaw, &fields)
	var epoch wire.RingResponse
	c.getJSON("/v1/ring", &epoch)
	for name, want := range map[string]string{"type": `"welcome"`, "session": "", "user": `"alice"`, "device": `"web-1"`, "node": `"ws-1"`,
		"epoch": fmt.Sprint(epoch.Epoch), "since": "", "head": "0", "pending": "0", "gap": "false", "ping_interval_ms": "25000", "max_message_bytes": "12345"} {
		got, ok := fields[name]
		if !ok || want != "" && string(got) != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if w.welcome.Session == "" || w.welcome.Since == "" {
		t.Errorf("session or since is empty: %s", w.welcomeRaw)
	}
	if s := c.connect("alice", "web-2").welcome.Session; s == w.welcome.Session {
		t.Errorf("two sessions have the id %s", s)
	}
	for since, gap := range map[string]bool{"0": false, w.welcome.Since: false, "of-another-log": true} {
		x := c.connectWith("bob", "web", func(d *inprocDial) { d.target += "?since=" + since })
		if x.welcome.Gap != gap {
			t.Errorf("since=%s: gap is %v", since, x.welcome.Gap)
		}
	}
	if x := c.connect("carol", ""); wire.CheckDevice(x.welcome.Device) != nil {
		t.Errorf("the device that was made up is %q", x.welcome.Device)
	}
}

func inprocText(s string) []byte { return inprocFrame(0x81, []byte(s)) }

// TestInprocFrames has what a client may send on one connection, and what comes
// of it.
func TestInprocFrames(t *testing.T) {
	c := inprocStart(t, locator.Config{}, wsnode.Config{})
	for name, f := range map[string]struct {
		send []byte
		want string // the next text frame, "" for none
	}{
		"ping":                     {inprocText(`{"type":"ping","ref":"r1"}`), `{"type":"pong","ref":"r1"}`},
		"ping with a number":       {inprocText(`{"type":"ping","ref":12345678901234567890}`), `{"type":"pong","ref":12345678901234567890}`},
		"ping without ref":         {inprocText(`{"type":"ping"}`), `{"type":"pong"}`},
		"type last":                {inprocText(` {"ref":"r","x":[1],"type":"ping"} `), `{"type":"pong","ref":"r"}`},
		"ping in two fragments":    {append(inprocFrame(0x01, []byte(`{"type":"pi`)), inprocFrame(0x80, []byte(`ng","ref":1}`))...), `{"type":"pong","ref":1}`},
		"unknown type":             {inprocText(`{"type":"of-the-future","ref":"r"}`), ""},
		"ack":                      {inprocText(`{"type":"ack","cursor":"0"}`), ""},
		"resume":                   {inprocText(`{"type":"resume","since":"0"}`), `{"type":"resumed","since":"0","head":0,"gap":false}`},
		"resume of another log":    {inprocText(`{"type":"resume","since":"zzz"}`), `{"type":"resumed","since":"0","head":0,"gap":true}`},
		"pong that nobody asked":   {inprocFrame(0x8A, []byte("x")), ""},
		"depth 32":                 {inprocText(`{"type":"x","a":` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `}`), ""},
		"largest message, unknown": {inprocText(`{"type":"x","a":"` + strings.Repeat("a", 65536) + `"}`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := c.with(t).connect("alice", "")
			w.send(string(f.send))
			if f.want != "" {
				if got := string(w.text()); got != f.want {
					t.Errorf("got %s, want %s", got, f.want)
				}
			}
			w.alive()
			_ = w.Close()
		})
	}
	for name, f := range map[string]struct {
		send string
		code wire.Code
	}{
		"send":                 {`{"type":"send","ref":"r2","data":{"a":1}}`, wire.CodeNoApplication},
		"ephemeral send":       {`{"type":"send","ref":7,"data":1,"ephemeral":true}`, wire.CodeNoApplication},
		"send to another user": {`{"type":"send","ref":"r3","to":"bob","data":1}`, wire.CodeForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			w := c.with(t).connect("alice", "")
			w.sendText(f.send)
			var sent, got struct {
				Type, Detail string
				Code         wire.Code
				Ref          json.RawMessage
			}
			inprocDecode(t, []byte(f.send), &sent)
			inprocDecode(t, w.text(), &got)
			if got.Type != "error" || got.Code != f.code || string(got.Ref) != string(sent.Ref) || got.Detail == "" {
				t.Errorf("got %+v", got)
			}
			w.alive() // the connection stays
		})
	}
	t.Run("WebSocket ping", func(t *testing.T) {
		for _, payload := range []string{"", "hello", strings.Repeat("p", 125)} {
			w := c.with(t).connect("alice", "")
			w.send(string(inprocFrame(0x89, []byte(payload))))
			b0, p, err := w.frame()
			if err != nil || b0 != 0x8A || string(p) != payload {
				t.Errorf("a ping with %q was answered by %#x %q, %v", payload, b0, p, err)
			}
		}
	})
	t.Run("the client leaves", func(t *testing.T) {
		c := c.with(t)
		w := c.connect("dora", "web")
		w.send(string(inprocFrame(0x88, []byte{0x03, 0xE8})))
		w.closes(1000)
		inprocEventually(t, "a push does not count who left", func() bool { return c.push("dora", `1`, "").Delivered == 0 })
	})
}

// TestInprocBrokenFrames has what ends a connection, and with which code. A
// second client on the same node must not notice.
func TestInprocBrokenFrames(t *testing.T) {
	c := inprocStart(t, locator.Config{}, wsnode.Config{})
	bystander := c.connect("bystander", "web")
	deep := func(open, shut string, n int) string {
		return `{"type":"x","a":` + strings.Repeat(open, n) + "1" + strings.Repeat(shut, n) + "}"
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	euro := []byte(`{"type":"ping","ref":"€"}`)
	cut := bytes.Index(euro, []byte("€")) + 1
	for name, f := range map[string]struct {
		send []byte
		code int
	}{
		// gws panics on it, outside of what it recovers.
		"length with the top bit": {append([]byte{0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0}, 1, 2, 3, 4), 1002},
		"length of all ones":      {append([]byte{0x81, 0xFF}, bytes.Repeat([]byte{0xFF}, 12)...), 1002},
		"binary, top bit":         {append([]byte{0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 1}, 1, 2, 3, 4), 1002},

		"unmasked":                 {append([]byte{0x81, 15}, `{"type":"ping"}`...), 1002},
		"unmasked ping":            {[]byte{0x89, 0}, 1002},
		"RSV1":                     {inprocFrame(0xC1, []byte(`{"type":"ping"}`)), 1002},
		"RSV2":                     {inprocFrame(0xA1, []byte(`{"type":"ping"}`)), 1002},
		"RSV3":                     {inprocFrame(0x91, []byte(`{"type":"ping"}`)), 1002},
		"RSV1 of a ping":           {inprocFrame(0xC9, nil), 1002},
		"opcode 3":                 {inprocFrame(0x83, []byte("x")), 1002},
		"opcode 7":                 {inprocFrame(0x87, nil), 1002},
		"opcode 11":                {inprocFrame(0x8B, nil), 1002},
		"opcode 15":                {inprocFrame(0x8F, nil), 1002},
		"fragmented ping":          {inprocFrame(0x09, nil), 1002},
		"fragmented pong":          {inprocFrame(0x0A, nil), 1002},
		"fragmented close":         {inprocFrame(0x08, []byte{0x03, 0xE8}), 1002},
		"ping of 126 bytes":        {inprocFrame(0x89, make([]byte, 126)), 1002},
		"close of 126 bytes":       {inprocFrame(0x88, append([]byte{0x03, 0xE8}, bytes.Repeat([]byte("a"), 124)...)), 1002},
		"close of 1 byte":          {inprocFrame(0x88, []byte{3}), 1002},
		"close with 1005":          {inprocFrame(0x88, []byte{0x03, 0xED}), 1002},
		"close with 999":           {inprocFrame(0x88, []byte{0x03, 0xE7}), 1002},
		"continuation of nothing":  {inprocFrame(0x80, []byte("x")), 1002},
		"text amid fragments":      {join(inprocFrame(0x01, []byte("{")), inprocFrame(0x81, []byte("}"))), 1002},
		"continuation after whole": {join(inprocText(`{"type":"x"}`), inprocFrame(0x80, []byte("x"))), 1002},

		"invalid UTF-8":            {inprocText("{\"type\":\"\xff\"}"), 1007},
		"overlong UTF-8":           {inprocText("{\"type\":\"\xc0\xaf\"}"), 1007},
		"surrogate in UTF-8":       {inprocText("{\"type\":\"\xed\xa0\x80\"}"), 1007},
		"invalid UTF-8, fragments": {join(inprocFrame(0x01, euro[:cut]), inprocFrame(0x80, append([]byte{0xFF}, euro[cut:]...))), 1007},
		"UTF-8 that ends early":    {join(inprocFrame(0x01, euro[:cut]), inprocFrame(0x80, nil)), 1007},
		"close, invalid reason":    {inprocFrame(0x88, []byte{0x03, 0xE8, 0xFF}), 1007},

		"16 MiB announced":           {inprocHead(0x81, 16<<20), 1009},
		"16 MiB announced, binary":   {inprocHead(0x82, 16<<20), 1009},
		"2^62 bytes announced":       {inprocHead(0x81, 1<<62), 1009},
		"too long, whole":            {inprocText(`{"type":"x","a":"` + strings.Repeat("a", 65536+4096) + `"}`), 1009},
		"too long in two fragments":  {join(inprocFrame(0x01, bytes.Repeat([]byte("a"), 40000)), inprocFrame(0x80, bytes.Repeat([]byte("a"), 40000))), 1009},
		"send of more than messages": {inprocText(`{"type":"send","ref":1,"data":"` + strings.Repeat("a", 65536) + `"}`), 4006},

		"binary":             {inprocFrame(0x82, []byte(`{"type":"ping"}`)), 4005},
		"empty":              {inprocText(""), 4005},
		"not JSON":           {inprocText("hello"), 4005},
		"half JSON":          {inprocText(`{"type":"ping"`), 4005},
		"two objects":        {inprocText(`{"type":"ping"}{"type":"ping"}`), 4005},
		"array":              {inprocText(`[{"type":"ping"}]`), 4005},
		"string":             {inprocText(`"ping"`), 4005},
		"null":               {inprocText(`null`), 4005},
		"no type":            {inprocText(`{"ref":"r"}`), 4005},
		"empty type":         {inprocText(`{"type":""}`), 4005},
		"type of a number":   {inprocText(`{"type":7}`), 4005},
		"40 arrays deep":     {inprocText(deep("[", "]", 40)), 4005},
		"40 objects deep":    {inprocText(deep(`{"a":`, "}", 40)), 4005},
		"30,000 deep":        {inprocText(`{"type":"x","a":` + strings.Repeat("[", 30000)), 4005},
		"ref of an object":   {inprocText(`{"type":"ping","ref":{}}`), 4005},
		"ref too long":       {inprocText(`{"type":"ping","ref":"` + strings.Repeat("r", 200) + `"}`), 4005},
		"ack without cursor": {inprocText(`{"type":"ack"}`), 4005},
		"cursor too long":    {inprocText(`{"type":"resume","since":"` + strings.Repeat("c", 65) + `"}`), 4005},
	} {
		t.Run(name, func(t *testing.T) {
			c := c.with(t)
			w := c.connect("alice", "web")
			w.send(string(f.send))
			w.closes(f.code)
			if r := c.push("bystander", `"still here"`, ""); r.Delivered != 1 {
				t.Errorf("the bystander got %d", r.Delivered)
			}
			bystander.expect(`"still here"`)
			inprocEventually(t, "a push does not count the closed session", func() bool { return c.push("alice", `1`, "").Delivered == 0 })
		})
	}
	bystander.alive()
	n := c.nodes[0]
	inprocEventually(t, "only the bystander's session is left", func() bool { return c.metric(n, "dialring_sessions") == "1" })
}
