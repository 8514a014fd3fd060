package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// terminal returns the descriptor of a terminal.
func terminal(stream any) (fd int, ok bool) {
	f, ok := stream.(interface{ Fd() uintptr })
	if !ok {
		return 0, false
	}
	fd = int(f.Fd())
	return fd, term.IsTerminal(fd)
}

// asJSON tells whether stdout is for programs.
func (a *app) asJSON() bool {
	_, tty := terminal(a.stdout)
	return a.output == "json" || a.output != "table" && !tty
}

func (a *app) colours() bool {
	_, tty := terminal(a.stdout)
	return tty && a.env("NO_COLOR") == "" && a.env("TERM") != "dumb"
}

// printJSON writes v as one line.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func (a *app) print(text string) error {
	_, err := io.WriteString(a.stdout, text)
	return err
}

// cell is one of a table.
type cell struct {
	text   string
	colour string
}

func plain(texts ...string) []cell {
	out := make([]cell, len(texts))
	for i, s := range texts {
		out[i].text = s
	}
	return out
}

// Colours of the ECMA-48 sequence SGR.
const (
	red, green, yellow, cyan = "31", "32", "33", "36"
)

// table lays rows out in columns.
func table(rows [][]cell, colours bool) string {
	var widths []int
	for _, r := range rows {
		for i := range r {
			r[i].text = clean(r[i].text)
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i].text))
		}
	}
	var out strings.Builder
	for _, r := range rows {
		var b strings.Builder
		for i, c := range r {
			text := c.text
			if colours && c.colour != "" {
				text = "\x1b[" + c.colour + "m" + text + "\x1b[0m"
			}
			b.WriteString(text)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		out.WriteString(strings.TrimRight(b.String(), " ") + "\n")
	}
	return out.String()
}

// clean shows the control characters of a text that others wrote: they are orders to a
// terminal. but are left as they are.
func clean(s string, but ...rune) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case len(but) > 0 && r == but[0]:
			b.WriteRune(r)
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r):
			fmt.Fprintf(&b, "\\u%04x", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func percent(share float64) string { return fmt.Sprintf("%.1f%%", 100*share) }

// plural is n things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// screen draws a few lines on a terminal, again and again in the same place.
type screen struct {
	w     io.Writer
	fd    int
	drawn int // lines
}

// newScreen returns nil where there is no terminal to draw on.
func newScreen(w io.Writer) *screen {
	fd, ok := terminal(w)
	if !ok {
		return nil
	}
	return &screen{w: w, fd: fd}
}

// draw replaces what was drawn. What does not fit into the window is left out; the
// terminal itself cuts lines while its wrapping is off.
func (s *screen) draw(text string) error {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if _, height, err := term.GetSize(s.fd); err == nil && height > 1 && len(lines) >= height {
		lines = lines[:height-1]
	}
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.drawn)
	}
	b.WriteString("\r\x1b[J\x1b[?7l")
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	b.WriteString("\x1b[?7h")
	s.drawn = len(lines)
	_, err := io.WriteString(s.w, b.String())
	return err
}

// clear takes away what was drawn.
func (s *screen) clear() {
	if s != nil && s.drawn > 0 {
		_, _ = fmt.Fprintf(s.w, "\x1b[%dA\r\x1b[J", s.drawn)
		s.drawn = 0
	}
}
