//! Branches, barriers and collectives of a warp.

use super::{Decoder, Result, modifiers::Modifiers, scope::Binding};
use crate::{
    exec::integer::IntOp,
    ir::{Barrier, BarrierKind, Op, ShuffleMode, Ty, Vote},
    ptx::syntax::{Item, Operand},
};

impl Decoder<'_> {
    pub(super) fn branch(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        modifiers.take("uni");
        let [Operand::Name(name)] = operands else { return self.error("bra needs one label") };
        let target = self.label(name)?;
        self.emit(Op::Branch { target });
        Ok(())
    }

    fn label(&self, name: &str) -> Result<u32> {
        match self.scopes.find(name) {
            Some(&Binding::Label(label)) => Ok(label),
            _ => self.error(format!("unknown label {name}")),
        }
    }

    pub(super) fn branch_table(
        &mut self,
        modifiers: &mut Modifiers,
        operands: &[Operand],
        items: &[Item],
    ) -> Result<()> {
        modifiers.take("idx");
        modifiers.take("uni");
        let [index, Operand::Name(table)] = self.operands(operands)? else {
            return self.error("brx.idx needs an index and a table");
        };
        let targets = items.iter().find_map(|item| match item {
            Item::BranchTargets { label, targets } if label == table => Some(targets),
            _ => None,
        });
        let Some(targets) = targets else { return self.error(format!("unknown table {table}")) };
        let targets = targets.iter().map(|name| self.label(name)).collect::<Result<Box<[u32]>>>()?;
        let index = self.source(Ty::U32, index)?;
        self.emit(Op::BranchTable { index, targets });
        Ok(())
    }

    /// `ret` of an inlined function goes behind it; otherwise the thread ends.
    pub(super) fn leave(&mut self, modifiers: &mut Modifiers, exits: bool) {
        modifiers.take("uni");
        match self.return_label {
            Some(target) if !exits => self.emit(Op::Branch { target }),
            _ => self.emit(Op::Exit),
        }
    }

    pub(super) fn collective(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<bool> {
        match modifiers.base() {
            "bar" | "barrier" => self.barrier(modifiers, operands)?,
            "shfl" => self.shuffle(modifiers, operands)?,
            "vote" => self.vote(modifiers, operands)?,
            "match" => self.match_lanes(modifiers, operands)?,
            "redux" => self.reduce(modifiers, operands)?,
            "activemask" => {
                modifiers.ty()?;
                let [d] = self.operands(operands)?;
                let d = self.destination(Ty::U32, d)?;
                self.emit(Op::ActiveMask { d });
            }
            "trap" => self.emit(Op::Trap),
            "nanosleep" => {
                modifiers.ty()?;
                self.emit(Op::Nothing);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn barrier(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        while modifiers.take_any(&["cta", "aligned"]).is_some() {}
        if modifiers.take("warp") {
            if !modifiers.take("sync") {
                return modifiers.error("expected .sync");
            }
            let [members] = self.operands(operands)?;
            let members = self.source(Ty::U32, members)?;
            self.emit(Op::WarpSync { members });
            return Ok(());
        }
        let kind = match modifiers.take_any(&["sync", "arrive", "red"]) {
            Some("sync") => BarrierKind::Sync,
            Some("arrive") => BarrierKind::Arrive,
            Some(_) => match modifiers.take_any(&["popc", "and", "or"]) {
                Some("popc") => BarrierKind::Popc,
                Some("and") => BarrierKind::And,
                Some(_) => BarrierKind::Or,
                None => return modifiers.error("a reduction is missing"),
            },
            None => return modifiers.error("this device does not know that form"),
        };
        let mut barrier = Barrier { kind, id: 0, count: None, d: 0, p: self.program.true_predicate, negated: false };
        let mut rest = operands;
        if !matches!(kind, BarrierKind::Sync | BarrierKind::Arrive) {
            let [d, middle @ .., p] = operands else { return modifiers.error("operands are missing") };
            let ty = modifiers.ty()?;
            barrier.d = self.destination(ty, d)?;
            (barrier.p, barrier.negated) = self.predicate(p)?;
            rest = middle;
        }
        let (id, count) = match rest {
            [id] => (id, None),
            [id, count] => (id, Some(self.source(Ty::U32, count)?)),
            _ => return modifiers.error("wrong number of operands"),
        };
        barrier.id = self.source(Ty::U32, id)?;
        barrier.count = count;
        self.emit(Op::Barrier(barrier));
        Ok(())
    }

    fn shuffle(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let mode = match (modifiers.take("sync"), modifiers.take_any(&["up", "down", "bfly", "idx"])) {
            (true, Some("up")) => ShuffleMode::Up,
            (true, Some("down")) => ShuffleMode::Down,
            (true, Some("bfly")) => ShuffleMode::Butterfly,
            (true, Some(_)) => ShuffleMode::Index,
            _ => return modifiers.error("this device knows shfl.sync only"),
        };
        modifiers.ty()?;
        let [d, a, b, c, members] = self.operands(operands)?;
        let (a, b, c) = (self.source(Ty::U32, a)?, self.source(Ty::U32, b)?, self.source(Ty::U32, c)?);
        let members = self.source(Ty::U32, members)?;
        let (d, p) = self.pair(Ty::U32, d)?;
        self.emit(Op::Shuffle { mode, d, p, a, b, c, members });
        Ok(())
    }

    fn vote(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let vote = match (modifiers.take("sync"), modifiers.take_any(&["all", "any", "uni", "ballot"])) {
            (true, Some("all")) => Vote::All,
            (true, Some("any")) => Vote::Any,
            (true, Some("uni")) => Vote::Uniform,
            (true, Some(_)) => Vote::Ballot,
            _ => return modifiers.error("this device knows vote.sync only"),
        };
        let ty = modifiers.ty()?;
        if (vote == Vote::Ballot) != (ty == Ty::U32) {
            return modifiers.error("wrong type");
        }
        let [d, p, members] = self.operands(operands)?;
        let ((p, negated), members) = (self.predicate(p)?, self.source(Ty::U32, members)?);
        let d = self.destination(ty, d)?;
        self.emit(Op::Vote { vote, d, p, negated, members });
        Ok(())
    }

    fn match_lanes(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        let all = modifiers.take("all");
        modifiers.take("any");
        modifiers.take("sync");
        let ty = modifiers.ty()?;
        let [d, a, members] = self.operands(operands)?;
        let (a, members) = (self.source(ty, a)?, self.source(Ty::U32, members)?);
        let (d, p) = self.pair(Ty::U32, d)?;
        self.emit(Op::Match { all, wide: ty.bits() == 64, d, p, a, members });
        Ok(())
    }

    fn reduce(&mut self, modifiers: &mut Modifiers, operands: &[Operand]) -> Result<()> {
        modifiers.take("sync");
        let word = modifiers.take_any(&["add", "min", "max", "and", "or", "xor"]);
        let ty = modifiers.ty()?;
        let op = match (word, ty) {
            (Some("add"), Ty::U32 | Ty::S32) => IntOp::Add,
            (Some("min"), Ty::U32) => IntOp::MinU,
            (Some("min"), Ty::S32) => IntOp::MinS,
            (Some("max"), Ty::U32) => IntOp::MaxU,
            (Some("max"), Ty::S32) => IntOp::MaxS,
            (Some("and"), Ty::U32) => IntOp::And,
            (Some("or"), Ty::U32) => IntOp::Or,
            (Some("xor"), Ty::U32) => IntOp::Xor,
            _ => return modifiers.error("this device does not know that reduction"),
        };
        let [d, a, members] = self.operands(operands)?;
        let (a, members) = (self.source(ty, a)?, self.source(Ty::U32, members)?);
        let d = self.destination(ty, d)?;
        self.emit(Op::Reduce { op, d, a, members });
        Ok(())
    }
}
