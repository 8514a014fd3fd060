package route

import (
	"context"
	"sync"
)

// Ordered sends the jobs of one sender: those to one user one after the other, so that
// none overtakes another when it has to be tried again. Its jobs have Ended set. The
// zero Ordered is ready; it may be used concurrently.
type Ordered struct {
	mu      sync.Mutex
	waiting map[string][]*Job // by user, behind the one that is under way
}

// Send sends j by r, in its turn.
func (o *Ordered) Send(ctx context.Context, r *Router, j *Job) {
	user, ended := j.User, j.Ended
	j.Ended = func(j *Job) {
		ended(j)
		if next := o.next(user); next != nil {
			r.Send(ctx, next)
		}
	}
	o.mu.Lock()
	queue, busy := o.waiting[user]
	if busy {
		o.waiting[user] = append(queue, j)
		o.mu.Unlock()
		return
	}
	if o.waiting == nil {
		o.waiting = map[string][]*Job{}
	}
	o.waiting[user] = nil
	o.mu.Unlock()
	r.Send(ctx, j)
}

// next takes the user's next job; without one nothing of the user's is under way.
func (o *Ordered) next(user string) *Job {
	o.mu.Lock()
	defer o.mu.Unlock()
	queue := o.waiting[user]
	if len(queue) == 0 {
		delete(o.waiting, user)
		return nil
	}
	o.waiting[user] = queue[1:]
	return queue[0]
}
