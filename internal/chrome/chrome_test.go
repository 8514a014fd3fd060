package chrome

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// What is wrong with a page is found.
func TestComplaints(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) }) // when the browser and the servers have ended
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good":
			w.Header().Set("Content-Security-Policy", "default-src 'self'")
			fmt.Fprint(w, `<!doctype html><link rel="icon" href="/good"><button aria-label="good">x</button><input aria-label="field">`)
		case "/bad":
			w.Header().Set("Content-Security-Policy", "default-src 'none'; img-src *; script-src 'nonce-a'; style-src 'nonce-a'")
			fmt.Fprintf(w, `<!doctype html><style nonce="a">p { color: #999; background: #fff }</style><p>pale</p><button></button><input>
				<script>document.title = "it ran"</script><script nonce="a">new Image().src = %q; console.error("told"); nothing.at.all;</script>`, other.URL+"/spy")
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(site.Close)

	p := Open(t, site.URL+"/good", 800, 600)
	p.Await(`document.readyState === "complete"`)
	if c := p.Complaints(); len(c) != 0 {
		t.Errorf("of a good page: %q", c)
	}
	if n, pale := p.Nameless(), p.Pale(); len(n) != 0 || len(pale) != 0 {
		t.Errorf("of a good page: nameless %q, pale %q", n, pale)
	}

	p = Open(t, site.URL+"/bad", 800, 600)
	var all []string
	for _, want := range []string{"Content Security Policy", other.URL + "/spy", "told", "nothing is not defined"} {
		for !slices.ContainsFunc(all, func(c string) bool { return strings.Contains(c, want) }) {
			p.Await("true") // the browser has answered: what it had to say came before
			more := p.Complaints()
			if all = append(all, more...); len(more) == 0 && len(all) >= 4 {
				t.Fatalf("%q is not among %q", want, all)
			}
		}
	}
	if n := p.Nameless(); len(n) != 2 {
		t.Errorf("nameless are %q", n)
	}
	if pale := p.Pale(); len(pale) != 1 || !strings.HasPrefix(pale[0], "pale has") {
		t.Errorf("pale are %q", pale)
	}
}
