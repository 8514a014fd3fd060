package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// RFC 6455 against a node, byte by byte, outside development mode: one table for each
// of its subjects. The cases are those that the Autobahn suite asks of a server, and
// what an attacker would add.

// conform is what a client sends on a connection of its own, and what comes of it.
type conform struct {
	name string
	send []byte
	want []string // what the node sends, in order: "pong " and a payload, or a text
	code int      // with which the node closes then; 0: it stays open
}

func joined(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// piecewise sends a text in fragments of n bytes each.
func piecewise(text string, n int) []byte {
	var out []byte
	for b0 := byte(0x01); ; b0 = 0 {
		if len(text) <= n {
			return append(out, inprocFrame(0x80|b0, []byte(text))...)
		}
		out = append(out, inprocFrame(b0, []byte(text[:n]))...)
		text = text[n:]
	}
}

// closing is a close frame.
func closing(code int, reason string) []byte {
	return inprocFrame(0x88, append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...))
}

// longForm is a text frame whose length takes n bytes (2 or 8), though fewer would do.
func longForm(b0 byte, n int, payload string) []byte {
	b := append([]byte{b0, map[int]byte{2: 0x80 | 126, 8: 0x80 | 127}[n]}, make([]byte, n)...)
	for i, k := n, len(payload); i > 0; i, k = i-1, k>>8 {
		b[1+i] = byte(k)
	}
	b = append(b, inprocMask[:]...)
	for i := range payload {
		b = append(b, payload[i]^inprocMask[i%4])
	}
	return b
}

// ofLength is a text frame of n bytes of which nothing comes, and what comes.
func ofLength(n int) (text, pong string) {
	ref := ""
	if k := n - len(`{"type":"ping","ref":""}`); k > 0 {
		ref = strings.Repeat("r", min(k, 100))
		return `{"type":"ping","ref":"` + ref + `"}` + strings.Repeat(" ", k-len(ref)), `{"type":"pong","ref":"` + ref + `"}`
	}
	return "", ""
}

func conformFraming() (out []conform) {
	for _, n := range []int{60, 124, 125, 126, 127, 128, 255, 65535, 65536, 65536 + 4096} {
		text, pong := ofLength(n)
		out = append(out, conform{fmt.Sprintf("%d bytes", n), inprocText(text), []string{pong}, 0})
	}
	const ping = `{"type":"ping"}`
	top := func(b0 byte, n uint64) []byte {
		return append(binary.BigEndian.AppendUint64([]byte{b0, 0xFF}, n), 1, 2, 3, 4)
	}
	return append(out, []conform{
		{"mask of zeros", joined([]byte{0x81, 0x8F, 0, 0, 0, 0}, []byte(ping)), []string{`{"type":"pong"}`}, 0},
		// gws panics on these, outside of what it recovers.
		{"length with the top bit", top(0x81, 1<<63), nil, 1002},
		{"length of all ones", top(0x81, 1<<64-1), nil, 1002},
		{"binary, length with the top bit", top(0x82, 1<<63+1), nil, 1002},
		{"continuation, length with the top bit", joined(inprocFrame(0x01, []byte("{")), top(0x80, 1<<63)), nil, 1002},
		{"ping, length with the top bit", top(0x89, 1<<63), nil, 1002},
		{"16 bits for a length of 15", longForm(0x81, 2, ping), nil, 1002},
		{"16 bits for a length of 0", longForm(0x81, 2, ""), nil, 1002},
		{"64 bits for a length of 15", longForm(0x81, 8, ping), nil, 1002},
		{"64 bits for a length of 65535", longForm(0x81, 8, strings.Repeat(" ", 65535)), nil, 1002},
		{"16 bits for a ping's length", longForm(0x89, 2, "x"), nil, 1002},
		{"64 bits for a close frame's length", longForm(0x88, 8, "\x03\xe8"), nil, 1002},
		// Nothing of these follows their heads, not even the mask.
		{"one byte more than the limit", inprocHead(0x81, 65536+4096+1)[:10], nil, 1009},
		{"16 MiB", inprocHead(0x81, 16<<20)[:10], nil, 1009},
		{"16 MiB, binary", inprocHead(0x82, 16<<20)[:10], nil, 1009},
		{"2^62 bytes", inprocHead(0x81, 1<<62)[:10], nil, 1009},
		{"16 MiB, fragment", inprocHead(0x01, 16<<20)[:10], nil, 1009},
		{"unmasked", append([]byte{0x81, 15}, ping...), nil, 1002},
		{"unmasked and empty", []byte{0x81, 0}, nil, 1002},
		{"unmasked ping", []byte{0x89, 0}, nil, 1002},
		{"unmasked close", []byte{0x88, 2, 3, 0xE8}, nil, 1002},
		{"what came before counts", joined(inprocText(ping), inprocFrame(0x89, []byte("a")), []byte{0x81, 0}), []string{`{"type":"pong"}`, "pong a"}, 1002},
	}...)
}

func conformBits() (out []conform) {
	for bits := byte(0x10); bits <= 0x70; bits += 0x10 { // RSV1 to RSV3, in every mixture
		for name, b0 := range map[string]byte{"text": 0x81, "binary": 0x82, "fragment": 0x01, "ping": 0x89, "close": 0x88} {
			out = append(out, conform{fmt.Sprintf("reserved bits %#x of a %s frame", bits, name), inprocFrame(b0|bits, nil), nil, 1002})
		}
	}
	for op := byte(0); op < 16; op++ {
		if op > 2 && op < 8 || op > 10 {
			out = append(out,
				conform{fmt.Sprintf("opcode %d", op), inprocFrame(0x80|op, nil), nil, 1002},
				conform{fmt.Sprintf("opcode %d, with a payload", op), joined(inprocFrame(0x89, nil), inprocFrame(0x80|op, []byte("x"))), []string{"pong "}, 1002},
				conform{fmt.Sprintf("opcode %d within a message", op), joined(inprocFrame(0x01, []byte("{")), inprocFrame(0x80|op, nil)), nil, 1002})
		}
	}
	return out
}

func conformControl() (out []conform) {
	for _, n := range []int{0, 1, 2, 124, 125} {
		p := strings.Repeat("\xfe", n) // any bytes
		out = append(out, conform{fmt.Sprintf("ping of %d bytes", n), inprocFrame(0x89, []byte(p)), []string{"pong " + p}, 0})
	}
	var pings []byte
	var pongs []string
	for i := range 30 {
		pings = append(pings, inprocFrame(0x89, []byte(fmt.Sprint(i)))...)
		pongs = append(pongs, fmt.Sprint("pong ", i))
	}
	const text = `{"type":"ping","ref":1}`
	return append(out, []conform{
		{"thirty pings at once", pings, pongs, 0},
		{"a pong that nobody asked for", inprocFrame(0x8A, nil), nil, 0},
		{"a pong with a payload", joined(inprocFrame(0x8A, []byte("unasked")), inprocFrame(0x89, []byte("p"))), []string{"pong p"}, 0},
		{"ping of 126 bytes", inprocFrame(0x89, make([]byte, 126)), nil, 1002},
		{"pong of 126 bytes", inprocFrame(0x8A, make([]byte, 126)), nil, 1002},
		{"close of 126 bytes", closing(1000, strings.Repeat("a", 124)), nil, 1002},
		{"ping that announces 16 MiB", inprocHead(0x89, 16<<20), nil, 1002},
		{"fragmented ping", inprocFrame(0x09, nil), nil, 1002},
		{"fragmented pong", inprocFrame(0x0A, nil), nil, 1002},
		{"fragmented close", inprocFrame(0x08, []byte{0x03, 0xE8}), nil, 1002},
		{"ping within a message", joined(inprocFrame(0x01, []byte(text[:9])), inprocFrame(0x89, []byte("p")), inprocFrame(0x80, []byte(text[9:]))),
			[]string{"pong p", `{"type":"pong","ref":1}`}, 0},
		{"pongs and pings within a message", joined(inprocFrame(0x01, nil), inprocFrame(0x8A, nil), inprocFrame(0x00, []byte(text)), inprocFrame(0x89, nil), inprocFrame(0x8A, []byte("x")), inprocFrame(0x80, nil)),
			[]string{"pong ", `{"type":"pong","ref":1}`}, 0},
		{"close within a message", joined(inprocFrame(0x01, []byte("{")), closing(1000, "")), nil, 1000},
	}...)
}

func conformFragments() []conform {
	const ping = `{"type":"ping","ref":1}`
	pong := []string{`{"type":"pong","ref":1}`}
	long := `{"type":"ping","ref":1` + strings.Repeat(" ", 20_000) + "}"
	empty := bytes.Repeat(inprocFrame(0x00, nil), 20_000)
	half := strings.Repeat("a", 40_000)
	return []conform{
		{"two fragments", piecewise(ping, 12), pong, 0},
		{"byte by byte", piecewise(ping, 1), pong, 0},
		{"20,000 fragments of a byte", piecewise(long, 1), pong, 0},
		{"20,000 empty fragments", joined(inprocFrame(0x01, []byte(ping)), empty, inprocFrame(0x80, nil)), pong, 0},
		{"empty at first and at last", joined(inprocFrame(0x01, nil), inprocFrame(0x00, []byte(ping)), inprocFrame(0x80, nil)), pong, 0},
		{"nothing in three fragments", joined(inprocFrame(0x01, nil), inprocFrame(0x00, nil), inprocFrame(0x80, nil)), nil, 4005},
		{"one after the other", joined(piecewise(ping, 5), piecewise(ping, 7), inprocText(ping)), []string{pong[0], pong[0], pong[0]}, 0},
		{"binary in fragments", joined(inprocFrame(0x02, []byte(ping)), inprocFrame(0x80, nil)), nil, 4005},
		{"continuation of nothing", inprocFrame(0x80, []byte(ping)), nil, 1002},
		{"continuation of nothing, not the last", inprocFrame(0x00, []byte(ping)), nil, 1002},
		{"continuation after a whole text", joined(inprocText(ping), inprocFrame(0x80, nil)), pong, 1002},
		{"continuation after the last", joined(piecewise(ping, 12), inprocFrame(0x00, nil)), pong, 1002},
		{"text within a message", joined(inprocFrame(0x01, []byte("{")), inprocText("}")), nil, 1002},
		{"binary within a message", joined(inprocFrame(0x01, []byte("{")), inprocFrame(0x82, nil)), nil, 1002},
		{"another beginning within a message", joined(inprocFrame(0x01, []byte("{")), inprocFrame(0x01, nil)), nil, 1002},
		{"continuation of nothing, announced only", inprocHead(0x80, 60_000), nil, 1002},
		{"too long in two fragments", joined(inprocFrame(0x01, []byte(half)), inprocHead(0x80, 40_000)), nil, 1009},
		{"too long by a byte", joined(inprocFrame(0x01, make([]byte, 65536)), inprocFrame(0x00, make([]byte, 4096)), inprocHead(0x00, 1)), nil, 1009},
		{"too long in small fragments", joined(inprocFrame(0x01, make([]byte, 65536)), bytes.Repeat(inprocFrame(0x00, make([]byte, 100)), 41)), nil, 1009},
	}
}

func conformText() (out []conform) {
	ping := func(s string) string { return `{"type":"ping","ref":"` + s + `"}` }
	for name, s := range map[string]string{
		"two bytes": "\u0080\u00e9\u07ff", "three bytes": "\u0800\u20ac\ud7ff\ue000\ufffd\uffff", "four bytes": "\U00010000\U0001F600\U0010FFFF",
		"characters that are none": "\ufdd0\ufffe\U0001FFFE", "Greek": "κόσμε", "combined": "e\u0301\u200d", "written from the right": "\u202eabc",
	} {
		pong := `{"type":"pong","ref":"` + s + `"}`
		out = append(out, conform{name, inprocText(ping(s)), []string{pong}, 0})
		for n := 1; n <= 3; n++ {
			out = append(out, conform{fmt.Sprintf("%s, in fragments of %d", name, n), piecewise(ping(s), n), []string{pong}, 0})
		}
	}
	for name, s := range map[string]string{
		"lone continuation": "\x80", "last of the continuations": "\xbf", "overlong slash": "\xc0\xaf", "overlong slash in 3": "\xe0\x80\xaf", "overlong slash in 4": "\xf0\x80\x80\xaf",
		"overlong NUL": "\xc0\x80", "largest overlong": "\xc1\xbf", "largest overlong of 3": "\xe0\x9f\xbf", "largest overlong of 4": "\xf0\x8f\xbf\xbf",
		"five bytes": "\xf8\x88\x80\x80\x80", "six bytes": "\xfc\x84\x80\x80\x80\x80", "FE": "\xfe", "FF": "\xff", "beyond the last": "\xf4\x90\x80\x80", "F5": "\xf5\x80\x80\x80",
		"high surrogate": "\xed\xa0\x80", "low surrogate": "\xed\xbf\xbf", "pair of surrogates": "\xed\xa0\x80\xed\xb0\x80",
		"cut after 1 of 2": "\xce", "cut after 2 of 3": "\xe2\x82", "cut after 3 of 4": "\xf0\x9f\x98", "cut, then more": "\xe2\x82x",
	} {
		out = append(out, conform{"invalid: " + name, inprocText(ping(s)), nil, 1007},
			conform{"invalid: " + name + ", byte by byte", piecewise(ping(s), 1), nil, 1007})
	}
	euro := "\xe2\x82\xac"
	return append(out,
		conform{"a message that ends within a character", joined(inprocFrame(0x01, []byte("{"+euro[:2])), inprocFrame(0x80, nil)), nil, 1007},
		conform{"a character with a ping within", joined(inprocFrame(0x01, []byte(`{"type":"ping","ref":"`+euro[:1])), inprocFrame(0x89, []byte("\xff")), inprocFrame(0x80, []byte(euro[1:]+`"}`))),
			[]string{"pong \xff", `{"type":"pong","ref":"€"}`}, 0},
		conform{"binary need not be text", inprocFrame(0x82, []byte("\xff")), nil, 4005})
}

func conformClosing() (out []conform) {
	for _, code := range []int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4005, 4201, 4999} {
		out = append(out, conform{fmt.Sprint("code ", code), closing(code, ""), nil, code})
	}
	for _, code := range []int{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 9999, 65535} {
		out = append(out, conform{fmt.Sprint("code ", code, " is none"), closing(code, ""), nil, 1002})
	}
	const ping = `{"type":"ping"}`
	pong := []string{`{"type":"pong"}`}
	return append(out, []conform{
		{"no body", inprocFrame(0x88, nil), nil, 1000},
		{"not of the contract, then close without a body", joined(inprocFrame(0x82, nil), inprocFrame(0x88, nil)), nil, 4005},
		{"not of the contract, then close", joined(inprocFrame(0x82, nil), closing(1000, "")), nil, 4005},
		{"a body of a byte", inprocFrame(0x88, []byte{3}), nil, 1002},
		{"a reason", closing(1000, "going"), nil, 1000},
		{"the longest reason", closing(4999, strings.Repeat("r", 123)), nil, 4999},
		{"a reason that is no text", closing(1000, "\xff"), nil, 1007},
		{"a reason that ends within a character", closing(1000, "\xe2\x82"), nil, 1007},
		{"text, then close", joined(inprocText(ping), closing(1000, "")), pong, 1000},
		{"close, then text", joined(closing(1000, ""), inprocText(ping)), nil, 1000},
		{"close, then ping", joined(closing(1001, ""), inprocFrame(0x89, nil)), nil, 1001},
		{"close twice", joined(closing(1000, ""), closing(1001, "")), nil, 1000},
		{"close, then nonsense", joined(closing(1000, ""), []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")), nil, 1000},
		{"not of the contract, then text", joined(inprocFrame(0x82, nil), inprocText(ping)), nil, 4005},
		{"broken, then text", joined([]byte{0x83, 0x80, 0, 0, 0, 0}, inprocText(ping)), nil, 1002},
		{"broken, then close", joined([]byte{0x83, 0x80, 0, 0, 0, 0}, closing(1000, "")), nil, 1002},
	}...)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{}, wsnode.Config{})
	bystander := c.connect("bystander", "web")
	for _, subject := range []struct {
		name  string
		cases []conform
	}{
		{"framing", conformFraming()}, {"bits", conformBits()}, {"control", conformControl()}, {"fragments", conformFragments()},
		{"text", conformText()}, {"closing", conformClosing()},
	} {
		t.Run(subject.name, func(t *testing.T) {
			for i, x := range subject.cases {
				t.Run(x.name, func(t *testing.T) {
					c := c.with(t)
					// What compresses is offered, and never taken: no frame may have RSV1 set.
					w := c.connectWith(fmt.Sprint("user-", i), "web", func(d *inprocDial) {
						d.set("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits, x-webkit-deflate-frame")
					})
					go func() { _, _ = w.Write(x.send) }() // the node may close in the middle
					w.conforms(x)
				})
			}
		})
	}
	bystander.alive()
	if r := c.push("bystander", `"still here"`, ""); r.Delivered != 1 {
		t.Errorf("the bystander got %d", r.Delivered)
	}
	inprocEventually(t, "only the bystander's session is left", func() bool { return c.metric(c.nodes[0], "dialring_sessions") == "1" })
}

// conforms checks what the node sends, up to the end of the connection if it is to end.
func (w *inprocWS) conforms(x conform) {
	w.t.Helper()
	for _, want := range x.want {
		b0, p, err := w.frame()
		got, b0s := string(p), byte(0x81)
		if payload, ok := strings.CutPrefix(want, "pong "); ok {
			want, b0s = payload, 0x8A
		} else if err == nil && json.Unmarshal(p, new(any)) != nil {
			w.t.Fatalf("not JSON: %q", p)
		}
		if err != nil || b0 != b0s || got != want {
			w.t.Fatalf("got %#x %q, %v; want %#x %q", b0, got, err, b0s, want)
		}
	}
	if x.code == 0 {
		w.alive()
		_ = w.Close()
		return
	}
	b0, p, err := w.frame()
	if err != nil || b0 != 0x88 || len(p) < 2 {
		w.t.Fatalf("no close frame: %#x %q, %v", b0, p, err)
	}
	if bytes.Contains(p, []byte("gws")) || bytes.Contains(p, []byte("127.0.0.1")) {
		w.t.Errorf("a stranger need not know %q", p[2:])
	}
	if code := int(binary.BigEndian.Uint16(p)); code != x.code {
		w.t.Errorf("closed with %d (%q), want %d", code, p, x.code)
	}
	// The closing handshake is complete, or is now; the node ends the connection, without
	// another byte, and without a reset.
	_, _ = w.Write(inprocFrame(0x88, p))
	if rest, err := io.ReadAll(w.br); len(rest) > 0 || err != nil {
		w.t.Errorf("after the close frame came %q, %v", rest, err)
	}
}

// TestConformanceMemory has heads that announce what must not be allocated, and
// fragments without end: memory does not follow them.
func TestConformanceMemory(t *testing.T) {
	c := processes(t, locator.Config{}, wsnode.Config{})
	for name, send := range map[string][]byte{
		"64 MiB announced":     inprocHead(0x81, 64<<20),
		"a ping of 64 MiB":     inprocHead(0x89, 64<<20),
		"a fragment of 64 MiB": joined(inprocFrame(0x01, []byte("{")), inprocHead(0x80, 64<<20)),
		"100,000 empty pieces": joined(inprocFrame(0x01, nil), bytes.Repeat(inprocFrame(0x00, nil), 100_000), []byte{0x80, 0x00}),
	} {
		t.Run(name, func(t *testing.T) {
			c := c.with(t)
			w := c.connect("alice", "web")
			before := c.allocated()
			go func() { _, _ = w.Write(send) }()
			code, _ := w.closed()
			after := c.allocated()
			if code != 1002 && code != 1009 {
				t.Errorf("closed with %d", code)
			}
			// Everything else that the node did meanwhile is in it, too.
			if mib := (after - before) / (1 << 20); mib > 32 {
				t.Errorf("%.0f MiB were allocated", mib)
			}
		})
	}
	t.Run("1,000 connections of 16 MiB each", func(t *testing.T) {
		s := c.with(t).signer()
		before := c.allocated()
		var all []*inprocWS
		for i := range 1000 { // all are open before the first is closed
			a, conn := inprocRaw(t, c.nodes[0].at.Listen, newInprocDial(s.Ticket(ticket.Ticket{User: fmt.Sprint("user-", i), Device: "d", Node: c.nodes[0].id}, time.Now())).String())
			all = append(all, inprocOpened(t, a, conn))
		}
		dialed := c.allocated() - before
		for _, w := range all {
			w.send(string(inprocHead(0x81, 16<<20)))
		}
		for _, w := range all {
			w.closes(1009)
			_ = w.Close()
		}
		// 16 GiB are announced.
		if mib := (c.allocated() - before) / (1 << 20); mib > 128 {
			t.Errorf("%.0f MiB were allocated, %.0f of them by dials", mib, dialed/(1<<20))
		} else {
			t.Logf("%.0f MiB were allocated, %.0f of them by dials", mib, dialed/(1<<20))
		}
	})
}
