package wsnode

import "testing"

func TestShares(t *testing.T) {
	s := newShares(100, 10)
	for range 5 {
		if !s.take("greedy", 5) {
			t.Fatal("a user does not get a quarter")
		}
	}
	if s.take("greedy", 1) {
		t.Error("a user gets more than a quarter")
	}
	for _, u := range []string{"a", "b", "c"} {
		if !s.take(u, 25) {
			t.Errorf("%s does not get a quarter", u)
		}
	}
	if s.take("d", 1) || s.taken() != 100 {
		t.Errorf("%d of 100 are taken, and one more", s.taken())
	}
	s.give("greedy", 5)
	if !s.take("d", 5) || s.take("greedy", 1) {
		t.Error("what was given back goes to whoever asks first")
	}
	for range 4 {
		s.give("greedy", 5)
	}
	s.give("d", 5)
	for _, u := range []string{"a", "b", "c"} {
		s.give(u, 25)
	}
	if s.taken() != 0 || len(s.by) != 0 {
		t.Errorf("%d are left, of %v", s.taken(), s.by)
	}
	if s = newShares(20, 10); !s.take("a", 10) || s.take("a", 1) {
		t.Error("of few bytes a user gets the largest message, and no more")
	}
}
