package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

func TestInprocWelcome(t *testing.T) {
	t.Parallel()
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

// TestFrames has what a client may send on one connection, and what comes
// of it.
func TestFrames(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{}, wsnode.Config{})
	for name, f := range map[string]struct {
		send []byte
		want string // the next text frame, "" for none
	}{
		"ping":                     {inprocText(`{"type":"ping","ref":"r1"}`), `{"type":"pong","ref":"r1"}`},
		"ping with a number":       {inprocText(`{"type":"ping","ref":12345678901234567890}`), `{"type":"pong","ref":12345678901234567890}`},
		"ping without ref":         {inprocText(`{"type":"ping"}`), `{"type":"pong"}`},
		"type last":                {inprocText(` {"ref":"r","x":[1],"type":"ping"} `), `{"type":"pong","ref":"r"}`},
		"unknown type":             {inprocText(`{"type":"of-the-future","ref":"r"}`), ""},
		"ack":                      {inprocText(`{"type":"ack","cursor":"0"}`), ""},
		"resume":                   {inprocText(`{"type":"resume","since":"0"}`), `{"type":"resumed","since":"0","head":0,"gap":false}`},
		"resume of another log":    {inprocText(`{"type":"resume","since":"zzz"}`), `{"type":"resumed","since":"0","head":0,"gap":true}`},
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
	t.Run("the client leaves", func(t *testing.T) {
		c := c.with(t)
		w := c.connect("dora", "web")
		w.send(string(inprocFrame(0x88, []byte{0x03, 0xE8})))
		w.closes(1000)
		inprocEventually(t, "a push does not count who left", func() bool { return c.push("dora", `1`, "").Delivered == 0 })
	})
}

// TestStrangeFrames has well-formed frames that are not of the contract, which end
// the connection with its codes; what breaks RFC 6455 is in conformance_test.go. A
// second client on the same node must not notice.
func TestStrangeFrames(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{}, wsnode.Config{})
	bystander := c.connect("bystander", "web")
	deep := func(open, shut string, n int) string {
		return `{"type":"x","a":` + strings.Repeat(open, n) + "1" + strings.Repeat(shut, n) + "}"
	}
	for name, f := range map[string]struct {
		send []byte
		code int
	}{
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
